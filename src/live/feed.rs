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
    ring::{At, Batch, End, Ring},
    source::Source,
};
use crate::{
    relay::telemetry::{Telemetry, chain},
    store::{Cursor, Error, Here, Store, Stretch, retry_waits},
};

/// Events of one read.
pub(super) const PAGE: usize = 512;
/// Interval of looking which database this is.
pub(super) const LOOK: Duration = Duration::from_secs(5);
/// Shortest time between two reads that nobody asked for, so that a stream of commits is read in batches.
pub(super) const PACE: Duration = Duration::from_millis(2);
/// The feed goes on for so long after the last client has left.
pub(super) const LINGER: Duration = Duration::from_secs(60);
/// How long somebody waits for the feed.
const WAIT: Duration = Duration::from_secs(10);

/// How far the feed has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Changes when the ring does not go on from where it was: another database, or a new beginning.
    pub(super) epoch: u64,
    /// Number of the next batch.
    pub(super) next: u64,
}

/// The newest part of the log, and what belongs to it.
#[derive(Debug)]
pub(super) struct Feed {
    /// Name of the process.
    pub(super) name: String,
    source: Source,
    pub(super) store: Arc<Store>,
    telemetry: Arc<Telemetry>,
    pub(super) poll: Duration,
    pub(super) buffer: usize,
    ring: Mutex<Option<Ring>>,
    here: ArcSwapOption<Here>,
    channels: ArcSwap<Channels>,
    /// Number of the newest question.
    pub(super) asked: AtomicU64,
    /// Notified when somebody asks, and when the doorbell rings.
    pub(super) wake: Arc<Notify>,
    pub(super) progress: watch::Sender<Progress>,
    /// The newest question that is answered.
    pub(super) answered: watch::Sender<u64>,
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
        source: Source,
        store: Arc<Store>,
        telemetry: Arc<Telemetry>,
        poll: Duration,
        buffer: usize,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            source,
            store,
            telemetry,
            poll,
            buffer,
            ring: Mutex::default(),
            here: ArcSwapOption::empty(),
            channels: ArcSwap::default(),
            asked: AtomicU64::new(0),
            wake: Arc::default(),
            progress: watch::Sender::default(),
            answered: watch::Sender::default(),
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

    /// Changes when the ring does not go on from where it was.
    pub(super) fn epoch(&self) -> u64 {
        self.progress.borrow().epoch
    }

    /// How far the feed has come, now and later.
    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The channels as they were when the newest batch was read, or later.
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
        let mut answered = self.answered.subscribe();
        let answered = answered.wait_for(|answered| *answered >= asked);
        match tokio::time::timeout(WAIT, answered).await {
            Ok(Ok(_)) => self.here(),
            _ => Err(self.unavailable()),
        }
    }

    /// Where the feed is.
    pub(super) fn here(&self) -> Result<Arc<Here>, Refusal> {
        self.here.load_full().ok_or_else(|| self.unavailable())
    }

    /// Why nothing can be had now.
    pub(super) fn unavailable(&self) -> Refusal {
        if self.store.is_fenced() {
            let reason = "the outbox belongs to another database; nothing is served before `pgoutbox adopt`";
            return Refusal::new(Code::Unavailable, reason);
        }
        unavailable()
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
        // In this order: a token of the database before with a cursor of the one after is refused.
        let here = self.here.load();
        let ring = self.ring();
        let Some(ring) = ring.as_ref() else { return Found::Dropped };
        match ring.get(number) {
            Some((batch, is_recent)) => Found::Batch(batch, is_recent),
            None if ring.has_dropped(number) => Found::Dropped,
            None => Found::NotYet(here.as_ref().map(|here| End::of(ring, here))),
        }
    }

    /// The end of the ring; none: there is no ring.
    pub(super) fn end(&self) -> Option<End> {
        let here = self.here.load();
        let ring = self.ring();
        Some(End::of(ring.as_ref()?, here.as_ref()?))
    }

    /// Time of the oldest batch in memory.
    pub(super) fn oldest(&self) -> Option<DateTime<Utc>> {
        self.ring().as_ref()?.oldest()
    }

    /// Leaves the list of gateways.
    pub(super) async fn close(&self) {
        if self.here.load().is_some() {
            // Otherwise relays tell it of news for 15 s more.
            let _ = self.store.leave_gateway(&self.name).await;
        }
    }

    pub(super) fn ring(&self) -> MutexGuard<'_, Option<Ring>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, until `stop` is cancelled.
    pub(super) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut waits = retry_waits();
        while !stop.is_cancelled() {
            let mut clients = self.clients.subscribe();
            tokio::select! {
                () = stop.cancelled() => return,
                _ = clients.wait_for(|count| *count > 0) => {}
            }
            let followed = match &self.source {
                Source::Log => self.follow(&stop).await.map_err(|error| chain(&error)),
                #[cfg(feature = "nats")]
                Source::Stream(stream) => stream.follow(&self, &stop).await,
            };
            match followed {
                Ok(()) => waits = retry_waits(),
                Err(error) => {
                    if self.store.is_tripped() {
                        // It may have been adopted since.
                        let _ = self.store.inspect_anew().await;
                    }
                    tracing::warn!(error, "live clients wait: reading new events failed, retrying");
                    let wait = waits.next().unwrap_or(PACE);
                    let _ = tokio::time::timeout(wait, stop.cancelled()).await;
                }
            }
        }
    }

    /// Reads until there have been no clients for a while.
    async fn follow(&self, stop: &CancellationToken) -> Result<(), Error> {
        let mut looked = self.look_and_begin().await?;
        let mut poll = tokio::time::interval(self.poll);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut left: Option<Instant> = None;
        loop {
            let asked = self.asked.load(Ordering::Acquire);
            if looked.elapsed() > LOOK {
                looked = self.look_and_begin().await?;
            }
            let began = Instant::now();
            while self.read().await? {}
            self.answered.send_replace(asked);
            if *self.clients.borrow() > 0 {
                left = None;
            } else if left.get_or_insert_with(Instant::now).elapsed() > LINGER {
                self.forget();
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
    async fn look_and_begin(&self) -> Result<Instant, Error> {
        let is_same = self.look().await?;
        if (!is_same || self.ring().is_none())
            && let Some(here) = self.here.load_full()
        {
            self.begin(Arc::new(here.cursor.clone()), here.now);
        }
        Ok(Instant::now())
    }

    /// Looks which database this is, and reports. Returns whether it is the same as before.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn look(&self) -> Result<bool, Error> {
        let here = self.store.look_around().await?;
        let known = self.here.load_full();
        let is_same = known
            .as_ref()
            .is_some_and(|known| known.database == here.database && !here.cursor.is_before(&known.cursor));
        if !is_same {
            // First: what follows may fail, and the ring of another database must not go on.
            self.forget();
        }
        if !is_same || here.generation != self.channels.load().generation {
            self.load_channels().await?;
        }
        // Relays tell of news while there are gateways.
        let clients = i32::try_from(*self.clients.borrow()).unwrap_or(i32::MAX);
        self.store.report_gateway(&self.name, clients).await?;
        self.here.store(Some(Arc::new(here)));
        Ok(is_same)
    }

    /// Begins a new ring.
    pub(super) fn begin(&self, head: Arc<Cursor>, at: DateTime<Utc>) {
        // Numbers go on: a place of the ring before is none of this one.
        let first = self.progress.borrow().next + 1;
        *self.ring() = Some(Ring::new(first, head, at, self.buffer));
        self.progress.send_modify(|progress| {
            progress.epoch += 1;
            progress.next = first;
        });
    }

    /// Drops the ring.
    pub(super) fn forget(&self) {
        *self.ring() = None;
        self.here.store(None);
    }

    /// Loads the channels as they are now.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn load_channels(&self) -> Result<(), Error> {
        self.channels.store(Arc::new(Channels::load(&self.store).await?));
        Ok(())
    }

    /// Reads what is new, and adds it to the ring. Returns whether there is more.
    async fn read(&self) -> Result<bool, Error> {
        let Some(here) = self.here.load_full() else { return Ok(false) };
        let Ok((_, head, _)) = self.head() else { return Ok(false) };
        let stretch = read_on(&self.store, &head, &here).await?;
        if stretch.generation != self.channels.load().generation {
            self.load_channels().await?;
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
    /// It does not exist yet: where the ring ends, at the same moment. None: which database this is is not
    /// known now.
    NotYet(Option<End>),
}

pub(super) fn unavailable() -> Refusal {
    Refusal::new(Code::Unavailable, "the database does not answer; try again")
}

/// Reads what is new behind a cursor, a page of it.
pub(super) async fn read_on(store: &Store, head: &Arc<Cursor>, here: &Here) -> Result<Stretch, Error> {
    match store.read_on(head, PAGE, true, here).await {
        // A payload that cannot be read fails the statement. Each is then read by itself.
        Err(error) if error.is_about_a_value() => store.read_on(head, PAGE, false, here).await,
        read => read,
    }
}
