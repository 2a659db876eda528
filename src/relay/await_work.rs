//! Sleep until there is work: the doorbell, the fallback poll, or a due time. A crash here costs nothing.
//!
//! Publishers ring (NOTIFY) only while every relay sleeps. A relay that wants to sleep takes the bell's lock
//! exclusively. A publisher that finds the lock free takes it shared until its commit and does not ring. So
//! taking it fails while such a publisher is under way, and the relay keeps looking. Once it has the lock,
//! one more look finds everything that was committed before. One relay holds the bell for all; the others
//! sleep on the same channel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    breaker, follow_up, hints, news,
    parts::{Base, Sending, Waiting},
    pauses,
};
use crate::sink::{plain::plain, servers::Servers};

/// Channel on which publishers notify.
pub(crate) const DOORBELL: &str = "outbox_doorbell";
/// Payload of a notification about deliveries that are due now.
const DUE: &str = "due";
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
/// Deadline of each statement on the listener's connection.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// How long the relay waits for the listening task. While its connection is silent there is only the poll.
const BELL_WITHIN: Duration = Duration::from_millis(250);
/// A new listener hears its first notification within this, or it hears nothing.
const HEARS_WITHIN: Duration = Duration::from_secs(2);
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
        let mut waits = backon_waits();
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
                    waits = backon_waits();
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
                    Err(error) => Err(super::telemetry::chain(&plain(error))),
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

/// Who holds one of the bell's locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    /// A login with the rights of a relay.
    Relay,
    /// A login without them, which has taken the lock by mistake or to do harm.
    Stranger,
}

/// A listening connection.
struct Listening {
    listener: PgListener,
    canary: String,
    heard: Instant,
    /// Whether this relay holds [`ATTENDANT_LOCK`].
    attends: bool,
    /// Whether this relay holds [`BELL_LOCK`], so that publishers notify.
    holds: bool,
}

impl Listening {
    /// Connects, and waits until it hears itself. None: it hears nothing, as behind a transaction pooler.
    async fn connect(base: &Base, servers: &Servers) -> Result<Option<Self>, String> {
        let connecting = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .max_lifetime(None)
                .idle_timeout(None)
                .connect_with(servers.find(false).await?)
                .await?;
            let mut listener = PgListener::connect_with(&pool).await?;
            listener.eager_reconnect(false);
            let canary = format!("outbox_canary_{}", Uuid::new_v4().simple());
            listener.listen_all([DOORBELL, breaker::CHANNEL, pauses::CHANNEL, canary.as_str()]).await?;
            if base.news.is_followed() {
                listener.listen(news::CHANNEL).await?;
            }
            Ok::<_, sqlx::Error>(Self {
                listener,
                canary,
                heard: Instant::now(),
                attends: false,
                holds: false,
            })
        };
        let mut listening = match tokio::time::timeout(ANSWER_WITHIN, connecting).await {
            Ok(Ok(listening)) => listening,
            Ok(Err(error)) => return Err(super::telemetry::chain(&plain(error))),
            Err(_) => return Err(format!("no connection within {} s", ANSWER_WITHIN.as_secs())),
        };
        base.store.ring(&listening.canary).await.map_err(|error| super::telemetry::chain(&error))?;
        match tokio::time::timeout(HEARS_WITHIN, listening.hear_itself()).await {
            Ok(Ok(())) => Ok(Some(listening)),
            Ok(Err(why)) => Err(why),
            Err(_) => Ok(None),
        }
    }

    /// Waits for the notification from itself. What else comes meanwhile is looked for afterwards.
    async fn hear_itself(&mut self) -> Result<(), String> {
        loop {
            match self.listener.try_recv().await {
                Ok(Some(notification)) if notification.channel() == self.canary => {
                    self.heard = Instant::now();
                    return Ok(());
                }
                Ok(Some(_)) => {}
                Ok(None) => return Err("the connection was closed".to_owned()),
                Err(error) => return Err(super::telemetry::chain(&plain(error))),
            }
        }
    }

    async fn may_sleep(&mut self) -> Result<MaySleep, String> {
        if self.holds {
            return Ok(MaySleep::Yes);
        }
        if !self.attends {
            self.attends = self.try_lock(ATTENDANT_LOCK).await?;
        }
        if !self.attends && self.holder(ATTENDANT_LOCK).await? == Some(Holder::Relay) {
            return Ok(MaySleep::OthersWatch);
        }
        // Nobody attends, or somebody who is no relay has taken the lock and would ring for nobody.
        self.holds = self.try_lock(BELL_LOCK).await?;
        if self.holds {
            return Ok(MaySleep::Yes);
        }
        let is_taken = !self.attends && self.holder(BELL_LOCK).await?.is_some();
        Ok(if is_taken { MaySleep::OthersWatch } else { MaySleep::NotYet })
    }

    /// Who holds a lock exclusively. Anybody who may connect can take it.
    async fn holder(&mut self, key: i64) -> Result<Option<Holder>, String> {
        let held = sqlx::query_scalar(
            "select bool_or(has_table_privilege(holder.usesysid, 'outbox.cursor', 'update')) \
               from pg_locks as held \
               join pg_stat_activity as holder on holder.pid = held.pid \
              where held.locktype = 'advisory' and held.mode = 'ExclusiveLock' and held.granted \
                and held.database = (select oid from pg_database where datname = current_database()) \
                and held.classid = 0 and held.objid = $1::bigint and held.objsubid = 1",
        );
        let is_relay: Option<bool> = answer(held.bind(key).fetch_one(&mut self.listener)).await?;
        Ok(is_relay.map(|is_relay| if is_relay { Holder::Relay } else { Holder::Stranger }))
    }

    async fn woke(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.holds) {
            let unlock =
                sqlx::query("select pg_advisory_unlock($1)").bind(BELL_LOCK).execute(&mut self.listener);
            answer(unlock).await?;
        }
        Ok(())
    }

    /// Hands the bell over: wakes the other relays, one of which takes it.
    async fn leave(&mut self) {
        if self.attends {
            let hand_over = sqlx::query("select pg_advisory_unlock_all(), pg_notify($1, '')")
                .bind(DOORBELL)
                .execute(&mut self.listener);
            // If this fails, the connection is closed and its locks are released; others notice at their
            // poll.
            let _ = answer(hand_over).await;
        }
    }

    async fn try_lock(&mut self, key: i64) -> Result<bool, String> {
        answer(sqlx::query_scalar("select pg_try_advisory_lock($1)").bind(key).fetch_one(&mut self.listener))
            .await
    }
}

async fn answer<T>(query: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, String> {
    match tokio::time::timeout(ANSWER_WITHIN, query).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(super::telemetry::chain(&plain(error))),
        Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
    }
}

/// Endless waits between attempts to reach the database: 100 ms to 1 s, with jitter.
pub(crate) fn backon_waits() -> impl Iterator<Item = Duration> + Send {
    use backon::BackoffBuilder as _;
    backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Sleeps until then; without a time for ever.
async fn sleep_until(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
