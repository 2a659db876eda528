//! One running relay: owns the parts, starts the stages, drains them.
//!
//! ```text
//!  await_work -> route -> claim -> deliver -> settle     beside them: maintain, renew, tidy, backfill
//!      ^           |        |                  |
//!      +-----------+--------+---- permits <----+         a permit comes back when its verdict is committed
//!
//!  a delivery:  leased (in a page) -> in flight -> settled     only the progress of the page is written
//!                    ^                        |--> retry       a row of outbox.deliveries, claimed when due
//!                    |                        |--> dead letter
//!                    |                        +--> held (410)
//!               waits in the backlog (ranges): its subscription is full, paused or behind a breaker
//! ```
//!
//! A crash costs nothing in await_work and maintain, the wait of one lease in route and claim, and a repeated
//! delivery for each permit taken in deliver and settle.

mod answers;
mod attempted;
pub(crate) mod await_work;
mod backfill;
mod breaker;
mod builder;
mod claim;
mod clock;
mod concurrency;
mod deliver;
pub(crate) mod delivery;
mod dispatch;
mod due;
mod fair;
mod follow_up;
mod held;
mod maintain;
mod matching;
mod parts;
mod pauses;
mod payloads;
mod plan;
mod prepare;
mod reload;
mod route;
mod schedule;
mod send;
mod settings;
mod settle;
mod takeover;
pub mod telemetry;
mod tidy;
mod way;
mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    builder::Builder,
    settings::{AttemptLog, Settings},
};
use self::{
    parts::{Base, Parts, Sending},
    telemetry::Telemetry,
};
use crate::store::{self, schema};

/// Why a relay did not start or could not go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The database cannot be used.
    #[error("starting the relay")]
    Start(#[source] store::Error),
    /// The schema cannot be read, or was migrated by a newer version.
    #[error("checking the schema")]
    Schema(#[source] schema::Error),
    /// Migrations are missing.
    #[error(
        "the schema outbox is missing or older than this binary (not applied: {missing}); \
         run `pgoutbox migrate`"
    )]
    Outdated {
        /// Names of the missing migrations, separated by commas.
        missing: String,
    },
    /// The database did not answer in time.
    #[error("the database did not answer within 10 s")]
    Silent,
    /// A stage of the relay panicked, which is a bug.
    #[error("a stage of the relay panicked")]
    StagePanicked,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Whether everything in flight had ended and was recorded in time.
    pub complete: bool,
    /// Deliveries that were cut off or not recorded. They are attempted again.
    pub left: usize,
}

/// A relay: delivers committed events to the subscriptions that want them.
#[derive(Debug)]
pub struct Relay {
    parts: Parts,
    listen: Option<PgConnectOptions>,
    health: Health,
}

/// Reports whether a relay can work. Usable after the relay has ended.
#[derive(Debug, Clone)]
pub struct Health {
    base: Arc<Base>,
    sending: Arc<Sending>,
    draining: Arc<AtomicBool>,
    started: Instant,
}

impl Relay {
    /// Begins a relay on the database of this pool. It opens its own connections with the pool's options.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a pool is a handle, and callers have no further use for it"
    )]
    pub fn builder(pool: PgPool) -> Builder {
        Builder::new((*pool.connect_options()).clone())
    }

    /// A handle that reports whether this relay can work.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Metrics and signals of this relay.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.parts.base.telemetry
    }

    /// Works until `shutdown` is cancelled. Then finishes what is in flight within `relay.drain`, and gives
    /// back the rest.
    ///
    /// # Errors
    /// When a stage panicked. A database that is away is waited for.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Drained, Error> {
        let Self { parts, listen, health } = self;
        let Parts { base, sending, waiting, counted, leases, .. } = parts.clone();
        let drained = CancellationToken::new();
        let stages = TaskTracker::new();
        let attempts = TaskTracker::new();
        let (outcomes, outcomes_inbox) = mpsc::channel(65_536);
        let (bell, bell_task) = await_work::bell(base.clone(), sending.clone(), waiting.clone(), listen);
        let stop_attempts = CancellationToken::new();
        // Dropping this future instead of cancelling `shutdown` ends the stages without a drain.
        let dropped = CancellationToken::new();
        let _dropped = dropped.clone().drop_guard();

        stages.spawn(dropped.clone().run_until_cancelled_owned(bell_task.listen(drained.clone())));
        stages.spawn(dropped.clone().run_until_cancelled_owned(held::renew(
            base.clone(),
            leases.clone(),
            drained.clone(),
        )));
        stages.spawn(dropped.clone().run_until_cancelled_owned(follow_up::tell(
            base.clone(),
            sending.clone(),
            drained.clone(),
        )));
        stages.spawn(dropped.clone().run_until_cancelled_owned(answers::record(
            base.clone(),
            sending.clone(),
            drained.clone(),
        )));
        stages.spawn(dropped.clone().run_until_cancelled_owned(maintain::maintain(
            base.clone(),
            sending.clone(),
            counted.clone(),
            shutdown.clone(),
        )));
        stages.spawn(dropped.clone().run_until_cancelled_owned(backfill::backfill(
            base.clone(),
            waiting.clone(),
            counted.clone(),
            shutdown.clone(),
        )));
        let deliver = Arc::new(deliver::Deliver::new(
            &parts,
            attempts.clone(),
            outcomes,
            stop_attempts.clone(),
            dropped.clone(),
        ));
        let settling = settle::Settle::both(&parts, outcomes_inbox, &deliver)
            .map(|settler| stages.spawn(dropped.clone().run_until_cancelled_owned(settler.settle())));
        stages.spawn(dropped.clone().run_until_cancelled_owned(tidy::tidy(
            base.clone(),
            sending.clone(),
            deliver.clone(),
            shutdown.clone(),
        )));
        let working = stages.spawn(dropped.clone().run_until_cancelled_owned(work::work(
            parts,
            bell,
            deliver.clone(),
            shutdown.clone(),
        )));
        stages.close();

        let worked = working.await;
        health.draining.store(true, Ordering::Release);
        let numbers = sending.dispatch.numbers();
        base.telemetry.stopping(&base.settings.name, (numbers.in_flight + numbers.unsettled) as usize);
        // Deliveries that have not begun are given back at once.
        let back = sending.dispatch.stop();
        deliver.give_back(back, crate::delivery::Reason::RelayStopped).await;
        attempts.close();
        let complete = tokio::time::timeout(base.settings.drain, attempts.wait()).await.is_ok();
        let left = if complete { 0 } else { attempts.len() };
        // Attempts that are cut off report it, and their deliveries are given back at once.
        stop_attempts.cancel();
        attempts.wait().await;
        drop(deliver);
        // All senders are dropped: settling ends when its queue is empty, unless the database stays away.
        let settled = tokio::time::timeout(
            base.settings.lease.max(Duration::from_secs(5)),
            futures_util::future::join_all(settling),
        )
        .await;
        drained.cancel();
        if tokio::time::timeout(Duration::from_secs(15), stages.wait()).await.is_err() {
            tracing::warn!("a stage did not end in time and is abandoned");
        }
        let _ =
            tokio::time::timeout(Duration::from_secs(2), base.store.leave_relay(&base.settings.name)).await;
        let _ = tokio::time::timeout(Duration::from_secs(2), base.store.close()).await;
        let (pages, rows) = leases.count();
        let unsettled = (sending.dispatch.numbers().unsettled as usize).max(pages + rows);
        base.telemetry.stopped(&base.settings.name, left.max(unsettled));
        match (worked, settled) {
            (Err(_), _) => Err(Error::StagePanicked),
            (_, Ok(ended)) if ended.iter().any(Result::is_err) => Err(Error::StagePanicked),
            _ => Ok(Drained { complete: complete && unsettled == 0, left: left.max(unsettled) }),
        }
    }
}

impl Health {
    /// Whether the database answers with a schema that fits, and the relay is not draining.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub async fn ready(&self) -> Result<(), String> {
        if self.draining.load(Ordering::Acquire) {
            return Err("draining".to_owned());
        }
        match tokio::time::timeout(Duration::from_secs(3), self.base.store.inspect()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(crate::relay::telemetry::chain(&error)),
            Err(_) => Err("the database did not answer within 3 s".to_owned()),
        }
    }

    /// The state of the relay as JSON, for `/readyz?verbose`.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let (base, sending) = (&self.base, &self.sending);
        let numbers = sending.dispatch.numbers();
        let index = base.index.load();
        serde_json::json!({
            "relay": base.settings.name,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "draining": self.draining.load(Ordering::Acquire),
            "permits": base.settings.permits,
            "free_permits": sending.dispatch.free_permits(),
            "leased_ahead": numbers.ahead,
            "leased_ahead_bytes": numbers.ahead_bytes,
            "in_flight": numbers.in_flight,
            "unsettled": numbers.unsettled,
            "subscriptions": index.iter().count(),
            "generation": index.generation,
            "open_breakers": sending.breakers.open(Instant::now()).into_iter().map(|about| match about {
                breaker::About::Host(host) => host.to_string(),
                breaker::About::Subscription(id) => {
                    index.get(id).map_or_else(String::new, |one| one.row.name.clone())
                }
            }).collect::<Vec<_>>(),
        })
    }
}
