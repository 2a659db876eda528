//! Sleep until there is work: the doorbell, the fallback poll, or a due time. A crash here costs nothing.
//!
//! Publishers ring (NOTIFY) only while every relay sleeps. A relay that wants to sleep takes the bell's lock
//! exclusively. A publisher that finds the lock free takes it shared until its commit and does not ring. So
//! taking it fails while such a publisher is under way, and the relay keeps looking. Once it has the lock,
//! one more look finds everything that was committed before. One relay holds the bell for all; the others
//! sleep on the same channel.

mod listening;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::listening::Listening;
use super::{
    breaker, follow_up, hints, news,
    parts::{Base, Sending, Waiting},
    pauses,
    telemetry::chain,
};
use crate::{
    sink::{plain::plain, servers::Servers},
    store::retry_waits,
};

/// Channel on which publishers notify.
pub(crate) const DOORBELL: &str = "outbox_doorbell";
/// Payload of a notification about deliveries that are due now.
pub(super) const DUE: &str = "due";
/// Advisory lock, held exclusively by a sleeping relay and shared by publishers that did not notify.
pub(crate) const BELL_LOCK: i64 = 7_411_001;
/// Advisory lock of the one relay that may hold the bell's lock.
pub(crate) const ATTENDANT_LOCK: i64 = 7_411_002;
/// Advisory lock of the one gateway that reads the log for all of them.
pub(crate) const FEEDER_LOCK: i64 = 7_411_004;

/// Interval at which the relay notifies itself, to test the listener.
const CANARY_EVERY: Duration = Duration::from_secs(5);
/// Time without a notification from itself after which the relay rebuilds the listener.
const CANARY_LOST: Duration = Duration::from_secs(15);
/// A canary that is not heard within this ends a rest: until the connection is replaced there is the poll.
const CANARY_LATE: Duration = Duration::from_secs(2);
/// How long the relay waits for the listening task. While its connection is silent there is only the poll.
const BELL_WITHIN: Duration = Duration::from_millis(250);
/// New listeners in a row that heard nothing, after which the relay says so and tries more rarely.
const DEAF_ROUNDS: u32 = 3;
/// Wait before the next one.
const DEAF_WAIT: Duration = Duration::from_secs(30);

/// Whether the relay may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MaySleep {
    /// This relay holds the bell's lock: publishers notify. It looks once more and sleeps.
    Yes,
    /// Another relay attends the bell: this one sleeps and hears the same notifications.
    OthersWatch,
    /// A publisher that did not notify is active: look again soon.
    NotYet,
    /// There is no doorbell, only the poll.
    NoBell,
}

/// The work loop's end of the doorbell.
#[derive(Debug)]
pub(crate) struct Bell {
    /// Notified for each notification of the database; several in a row count as one.
    pub(crate) rung: Arc<Notify>,
    /// Look for due deliveries now: one was redriven, or rings may have been missed.
    pub(crate) missed: Arc<AtomicBool>,
    commands: mpsc::Sender<Command>,
}

/// The listening task's end of the doorbell.
#[derive(Debug)]
pub(crate) struct BellTask {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    servers: Option<Servers>,
    rung: Arc<Notify>,
    missed: Arc<AtomicBool>,
    commands: mpsc::Receiver<Command>,
}

#[derive(Debug)]
enum Command {
    MaySleep(oneshot::Sender<MaySleep>),
    Woke,
}

/// Both ends of the doorbell. Without servers the task answers that there is none.
pub(super) fn bell(
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    servers: Option<Servers>,
) -> (Bell, BellTask) {
    let (commands, inbox) = mpsc::channel(8);
    let rung = Arc::new(Notify::new());
    let missed = Arc::new(AtomicBool::new(false));
    (
        Bell { rung: rung.clone(), missed: missed.clone(), commands },
        BellTask { base, sending, waiting, servers, rung, missed, commands: inbox },
    )
}

impl Bell {
    /// Asks whether the relay may sleep.
    pub(crate) async fn may_sleep(&self) -> MaySleep {
        let (answer, question) = oneshot::channel();
        if self.commands.try_send(Command::MaySleep(answer)).is_err() {
            return MaySleep::NoBell;
        }
        match tokio::time::timeout(BELL_WITHIN, question).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(_) => MaySleep::NoBell,
        }
    }

    /// Tells the listening task that the relay is awake, so that publishers need not notify. While its
    /// connection is silent it may not hear that: then publishers notify for nothing.
    pub(crate) fn woke(&self) {
        let _ = self.commands.try_send(Command::Woke);
    }
}

impl BellTask {
    /// Listens until the relay has drained; rebuilds the connection after any error.
    pub(super) async fn listen(mut self, drained: CancellationToken) {
        let Some(servers) = self.servers.take() else {
            tracing::warn!("no direct database connection for LISTEN: events wait for the poll");
            self.without_bell(&drained, None).await;
            return;
        };
        let mut waits = retry_waits();
        let mut deaf = 0;
        while !drained.is_cancelled() {
            let base = self.base.clone();
            // The relay polls meanwhile.
            let connected = tokio::select! {
                connected = Box::pin(Listening::connect(&base, &servers)) => connected,
                () = self.without_bell(&drained, None) => return,
            };
            let why = match connected {
                Ok(None) => {
                    deaf += 1;
                    if deaf == DEAF_ROUNDS {
                        self.base.telemetry.listener_deaf();
                    }
                    let wait = if deaf < DEAF_ROUNDS { waits.next() } else { Some(DEAF_WAIT) };
                    self.without_bell(&drained, wait).await;
                    continue;
                }
                Ok(Some(listener)) => {
                    waits = retry_waits();
                    deaf = 0;
                    self.base.telemetry.listener_connected();
                    self.missed.store(true, Ordering::Release);
                    self.rung.notify_one();
                    match self.serve(listener, &drained).await {
                        Some(why) => why,
                        None => return,
                    }
                }
                Err(why) => why,
            };
            self.base.telemetry.listener_lost(&why);
            self.rung.notify_one();
            let wait = waits.next().unwrap_or(CANARY_EVERY);
            self.without_bell(&drained, Some(wait)).await;
        }
    }

    /// Answers that there is no bell: for this time, or until the relay has drained.
    async fn without_bell(&mut self, drained: &CancellationToken, wait: Option<Duration>) {
        let until = wait.map(|wait| tokio::time::Instant::now() + wait);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(Command::MaySleep(answer)) => { let _ = answer.send(MaySleep::NoBell); }
                    Some(Command::Woke) => {}
                    // The work has ended: the relay drains, or is dropped to begin anew.
                    None => return drained.cancelled().await,
                },
                () = sleep_until(until) => return,
                () = drained.cancelled() => return,
            }
        }
    }

    /// Listens on one connection. Returns why it must be rebuilt, or `None` when the relay has drained.
    async fn serve(&mut self, mut listening: Listening, drained: &CancellationToken) -> Option<String> {
        let mut tick = tokio::time::interval(CANARY_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expected = None;
        loop {
            let result = tokio::select! {
                () = drained.cancelled() => {
                    listening.leave().await;
                    return None;
                }
                () = sleep_until(expected), if expected.is_some() => {
                    expected = None;
                    self.rung.notify_one();
                    Ok(())
                }
                command = self.commands.recv() => match command {
                    None => {
                        listening.leave().await;
                        drained.cancelled().await;
                        return None;
                    }
                    Some(Command::Woke) => listening.woke().await,
                    Some(Command::MaySleep(answer)) if answer.is_closed() => Ok(()),
                    Some(Command::MaySleep(answer)) => listening.may_sleep().await.map(|may| {
                        if answer.send(may).is_err() {
                            self.rung.notify_one(); // it came too late: the relay looks once more
                        }
                    }),
                },
                notification = listening.listener.try_recv() => match notification {
                    Ok(Some(notification)) if notification.channel() == DOORBELL => {
                        let index = self.base.index.load();
                        let is_known = |id| index.get(id).is_some();
                        hints::hear(&self.waiting, notification.payload(), is_known);
                        self.base.news.hear_doorbell(notification.payload(), &self.base.settings.name);
                        if notification.payload() == DUE {
                            self.missed.store(true, Ordering::Release);
                        }
                        self.rung.notify_one();
                        Ok(())
                    }
                    Ok(Some(notification)) if notification.channel() == breaker::CHANNEL => {
                        let index = self.base.index.load();
                        if follow_up::hear(&index, &self.sending, &self.waiting, notification.payload()) {
                            self.rung.notify_one();
                        }
                        Ok(())
                    }
                    Ok(Some(notification)) if notification.channel() == news::CHANNEL => {
                        self.base.news.hear();
                        Ok(())
                    }
                    Ok(Some(notification)) if notification.channel() == pauses::CHANNEL => {
                        self.sending.pauses.recorded.notify_one();
                        Ok(())
                    }
                    Ok(Some(_)) => {
                        listening.heard = Instant::now();
                        expected = None;
                        Ok(())
                    }
                    Ok(None) => Err("the connection was closed".to_owned()),
                    Err(error) => Err(chain(&plain(error))),
                },
                _ = tick.tick() => {
                    if listening.heard.elapsed() > CANARY_LOST {
                        Err(format!("no notification from itself for {} s", CANARY_LOST.as_secs()))
                    } else {
                        // Through the pool and not through this connection, to check the whole way. While the
                        // database is away nothing is heard either, and the listener is rebuilt.
                        if let Err(error) = self.base.store.ring(&listening.canary).await {
                            self.base.telemetry.database_failed("await_work", &error);
                        }
                        expected = Some(tokio::time::Instant::now() + CANARY_LATE);
                        Ok(())
                    }
                }
            };
            if let Err(why) = result {
                return Some(why);
            }
        }
    }
}

/// Sleeps until then; without a time for ever.
async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
