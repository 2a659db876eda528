//! Reads the log once for all clients, while there are any.
//!
//! It reads when the doorbell rings, when a relay tells of news, when somebody asks, and at each poll. What
//! it has read is in the ring before those who asked are answered.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use chrono::{DateTime, Utc};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    channels::Channels,
    message::{Code, Refusal},
    payloads,
    ring::{At, Batch, Ring},
};
use crate::{
    relay::{
        await_work::backon_waits,
        telemetry::{Telemetry, chain},
    },
    store::{Cursor, Error, Here, Store},
};

/// Events of one read.
pub(super) const PAGE: usize = 512;
/// Interval of looking which database this is.
const LOOK: Duration = Duration::from_secs(5);
/// Shortest time between two reads that nobody asked for, so that a stream of commits is read in batches.
const PACE: Duration = Duration::from_millis(2);
/// The feed goes on for so long after the last client has left.
const LINGER: Duration = Duration::from_secs(60);
/// How long somebody waits for the feed.
const WAIT: Duration = Duration::from_secs(10);

/// How far the feed has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Changes when the ring does not go on from where it was: another database, or a new beginning.
    pub(super) epoch: u64,
    /// Number of the next batch.
    pub(super) next: u64,
    /// The last question that is answered.
    answered: u64,
}

/// The newest part of the log, and what belongs to it.
#[derive(Debug)]
pub(super) struct Feed {
    /// Name of the process.
    name: String,
    store: Store,
    telemetry: Arc<Telemetry>,
    poll: Duration,
    buffer: usize,
    ring: Mutex<Option<Ring>>,
    here: ArcSwapOption<Here>,
    channels: ArcSwap<Channels>,
    asked: AtomicU64,
    /// Notified when somebody asks, and when the doorbell rings.
    pub(super) wake: Notify,
    progress: watch::Sender<Progress>,
    clients: watch::Sender<usize>,
}

/// Counts a client as long as it lives.
#[derive(Debug)]
pub(super) struct Client(Arc<Feed>);

impl Drop for Client {
    fn drop(&mut self) {
        self.0.clients.send_modify(|count| *count -= 1);
    }
}

impl Feed {
    pub(super) fn new(
        name: String,
        store: Store,
        telemetry: Arc<Telemetry>,
        poll: Duration,
        buffer: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            store,
            telemetry,
            poll,
            buffer,
            ring: Mutex::default(),
            here: ArcSwapOption::empty(),
            channels: ArcSwap::default(),
            asked: AtomicU64::new(0),
            wake: Notify::new(),
            progress: watch::Sender::default(),
            clients: watch::Sender::default(),
        })
    }

    /// Keeps the feed going.
    pub(super) fn join(self: &Arc<Self>) -> Client {
        self.clients.send_modify(|count| *count += 1);
        Client(self.clone())
    }

    /// Whether there are clients, now and later.
    pub(super) fn clients(&self) -> watch::Receiver<usize> {
        self.clients.subscribe()
    }

    /// How far the feed has come, now and later.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The channels as they were when the newest batch was read.
    pub(super) fn channels(&self) -> Arc<Channels> {
        self.channels.load_full()
    }

    /// Waits until everything is in the ring that was committed before the call.
    ///
    /// # Errors
    /// When the database does not answer within 10 s.
    pub(super) async fn catch_up(&self) -> Result<Arc<Here>, Refusal> {
        let asked = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.wake.notify_one();
        let mut progress = self.progress.subscribe();
        let answered = progress.wait_for(|progress| progress.answered >= asked);
        match tokio::time::timeout(WAIT, answered).await {
            Ok(Ok(_)) => self.here(),
            _ => Err(unavailable()),
        }
    }

    /// Where the feed is.
    pub(super) fn here(&self) -> Result<Arc<Here>, Refusal> {
        self.here.load_full().ok_or_else(unavailable)
    }

    /// The end of the ring: its place, the cursor there, and its time.
    pub(super) fn head(&self) -> Result<(At, Arc<Cursor>, DateTime<Utc>), Refusal> {
        let ring = self.ring();
        let ring = ring.as_ref().ok_or_else(unavailable)?;
        let (cursor, at) = ring.head();
        Ok((At { batch: ring.next(), index: 0 }, cursor.clone(), at))
    }

    /// Where a cursor is in the ring; none: the ring does not know.
    pub(super) fn find(&self, cursor: &Cursor) -> Option<At> {
        self.ring().as_ref()?.find(cursor)
    }

    /// The batch of this number.
    pub(super) fn batch(&self, number: u64) -> Found {
        let ring = self.ring();
        let Some(ring) = ring.as_ref() else { return Found::Dropped };
        match ring.get(number) {
            Some((batch, is_recent)) => Found::Batch(batch, is_recent),
            None if ring.has_dropped(number) => Found::Dropped,
            None => Found::NotYet,
        }
    }

    /// Time of the oldest batch in memory.
    pub(super) fn oldest(&self) -> Option<DateTime<Utc>> {
        self.ring().as_ref()?.oldest()
    }

    /// Waits until its database may not be used any more.
    pub(super) async fn tripped(&self) {
        self.store.tripped().await;
    }

    /// Closes its connections.
    pub(super) async fn close(&self) {
        if self.here.load().is_some() {
            // Otherwise relays tell it of news for 15 s more.
            let _ = self.store.leave_gateway(&self.name).await;
        }
        self.store.close().await;
    }

    fn ring(&self) -> MutexGuard<'_, Option<Ring>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, until `stop` is cancelled.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut waits = backon_waits();
        while !stop.is_cancelled() {
            let mut clients = self.clients.subscribe();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = clients.wait_for(|count| *count > 0) => {}
            }
            match self.follow(&stop).await {
                Ok(()) => waits = backon_waits(),
                Err(error) => {
                    tracing::warn!(
                        error = chain(&error),
                        "live clients wait: reading the log failed, retrying"
                    );
                    let wait = waits.next().unwrap_or(PACE);
                    let _ = tokio::time::timeout(wait, stop.cancelled()).await;
                }
            }
        }
    }

    /// Reads until there have been no clients for a while.
    async fn follow(&self, stop: &CancellationToken) -> Result<(), Error> {
        let mut looked = self.look().await?;
        let mut poll = tokio::time::interval(self.poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut left: Option<Instant> = None;
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            if looked.elapsed() > LOOK {
                looked = self.look().await?;
            }
            let began = Instant::now();
            while self.read().await? {}
            self.progress
                .send_if_modified(|progress| std::mem::replace(&mut progress.answered, asked) != asked);
            if *self.clients.borrow() > 0 {
                left = None;
            } else if left.get_or_insert_with(Instant::now).elapsed() > LINGER {
                *self.ring() = None;
                self.here.store(None);
                self.telemetry.live_feed_rested();
                return self.store.leave_gateway(&self.name).await;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.wake.notified() => {}
                _ = poll.tick() => {}
            }
            if self.asked.load(Ordering::Acquire) == asked
                && let Some(rest) = PACE.checked_sub(began.elapsed())
            {
                let _ = tokio::time::timeout(rest, stop.cancelled()).await;
            }
        }
    }

    /// Looks which database this is. If it is another one, or the ring is not there, a new ring begins.
    async fn look(&self) -> Result<Instant, Error> {
        let here = self.store.look_around().await?;
        let known = self.here.load_full();
        let is_same = known
            .as_ref()
            .is_some_and(|known| known.database == here.database && !here.cursor.is_before(&known.cursor));
        let begins = !is_same || self.ring().is_none();
        if begins || here.generation != self.channels.load().generation {
            self.channels.store(Arc::new(Channels::load(&self.store).await?));
        }
        let here = Arc::new(here);
        self.here.store(Some(here.clone()));
        // Relays tell of news while there are gateways.
        let clients = i32::try_from(*self.clients.borrow()).unwrap_or(i32::MAX);
        self.store.report_gateway(&self.name, clients).await?;
        if begins {
            *self.ring() = Some(Ring::new(Arc::new(here.cursor.clone()), here.now, self.buffer));
            self.progress.send_modify(|progress| {
                progress.epoch += 1;
                progress.next = 0;
            });
        }
        Ok(Instant::now())
    }

    /// Reads what is new, and adds it to the ring. Returns whether there is more.
    async fn read(&self) -> Result<bool, Error> {
        let Some(here) = self.here.load_full() else { return Ok(false) };
        let Ok((_, head, _)) = self.head() else { return Ok(false) };
        let stretch = match self.store.read_on(&head, PAGE, true, &here).await {
            // A payload that cannot be read fails the statement. Each is then read by itself.
            Err(error) if error.is_about_a_value() => self.store.read_on(&head, PAGE, false, &here).await?,
            read => read?,
        };
        if stretch.generation != self.channels.load().generation {
            self.channels.store(Arc::new(Channels::load(&self.store).await?));
        }
        let batch = payloads::batch(&self.store, stretch, &here).await?;
        self.telemetry.live_feed_read();
        let has_more = batch.mark.after.has_window();
        let is_news = !batch.events.is_empty();
        let next = {
            let mut ring = self.ring();
            let Some(ring) = ring.as_mut() else { return Ok(false) };
            ring.push(batch);
            ring.next()
        };
        if is_news {
            self.progress.send_modify(|progress| progress.next = next);
        }
        Ok(has_more)
    }
}

/// A batch that was looked for.
pub(super) enum Found {
    /// It, and whether its messages are kept.
    Batch(Arc<Batch>, bool),
    /// It is not in memory any more.
    Dropped,
    /// It does not exist yet.
    NotYet,
}

pub(super) fn unavailable() -> Refusal {
    Refusal::new(Code::Unavailable, "the database does not answer; try again")
}
