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
mod claim_in_order;
mod clock;
mod concurrency;
mod crash;
mod deliver;
pub(crate) mod delivery;
mod dispatch;
mod doubt;
mod due;
mod fair;
mod fence;
mod follow_up;
mod held;
mod hints;
mod lease;
mod maintain;
mod matching;
mod news;
mod order;
mod pace;
mod parts;
mod pauses;
mod payloads;
mod plan;
mod prepare;
mod reload;
mod renew;
mod replay;
mod retain;
mod retention;
mod route;
mod schedule;
mod send;
mod set_back;
mod settings;
mod settle;
mod shared;
mod stages;
mod sweep;
mod takeover;
pub mod telemetry;
mod tidy;
mod trouble;
mod urgent;
mod usable;
mod watch;
mod way;
mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use sqlx::PgPool;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

#[cfg(feature = "cli")]
pub(crate) use self::shared::Shared;
pub use self::{
    builder::Builder,
    retention::{Laggard, Retention},
    settings::{AttemptLog, Settings},
};
use self::{
    fence::Fence,
    parts::{Base, Parts, Sending},
    telemetry::Telemetry,
    watch::Failed,
};
use crate::{
    sink::{servers::Servers, sqlstate::Class},
    store::{self, schema},
};

/// Decisions that need neither a database nor a clock, for the model in `tests/it/model`.
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod decisions {
    pub use super::{
        dispatch::{Epoch, Fate, Gate, Keyed, Ordered, Place, Released},
        plan::{Plan, Room, Standing, Wanting, plan},
        takeover::left_of,
    };
}

/// The longest time that a stage may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

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
    /// A layer names a kind of sink that the relay does not have.
    #[error("layer_on: this relay has no sink {kind:?}; add the sink, or use the kind of one that it has")]
    LayerWithoutSink {
        /// The kind.
        kind: String,
    },
    /// A stage of the relay panicked or ended, which is a bug. The relay has stopped: start it again.
    #[error("the stage {stage} of the relay ended unexpectedly, which is a bug; start the relay again")]
    StageEnded {
        /// Name of the stage.
        stage: &'static str,
    },
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
    listen: Option<Servers>,
    /// Names and topics of the handlers.
    /// Names of its sinks.
    sinks: Vec<&'static str>,
    declared: Vec<(String, Vec<String>)>,
    health: Health,
}

/// Reports whether a relay can work. Usable after the relay has ended.
#[derive(Debug, Clone)]
pub struct Health {
    base: Arc<Base>,
    /// Another one after the relay has begun anew.
    sending: Arc<ArcSwap<Sending>>,
    draining: Arc<AtomicBool>,
    failed: Failed,
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
        Builder::new((*pool.connect_options()).clone().into())
    }

    /// Begins a relay on the right one of these servers: after a failover it finds the one that can be
    /// written to.
    #[must_use]
    pub fn on(servers: impl Into<Servers>) -> Builder {
        Builder::new(servers.into())
    }

    /// A handle that reports whether this relay can work.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// Changes whenever there may be new events in the log: this relay has read some, or others have told it.
    /// Who asks before the relay runs hears of the events that other relays read, too. No event is missed by
    /// who reads the log after each change, except while the database is away or a relay is frozen.
    #[must_use]
    pub fn news(&self) -> tokio::sync::watch::Receiver<u64> {
        self.parts.base.news.follow()
    }

    /// Metrics and signals of this relay.
    #[must_use]
    pub fn telemetry(&self) -> &Arc<Telemetry> {
        &self.parts.base.telemetry
    }

    /// Works until `shutdown` is cancelled. Then finishes what is in flight within `relay.drain`, and gives
    /// back the rest. Sends nothing while the outbox belongs to another database, and begins anew when the
    /// database was set back.
    ///
    /// # Errors
    /// When a stage panicked or ended, or a handler cannot be declared. A database that is away is waited
    /// for.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Drained, Error> {
        let Self { mut parts, listen, sinks, declared, health } = self;
        let mut must_declare = false;
        loop {
            let fence = fence::pass(&parts.base, &shutdown).await;
            if fence == Fence::Stopped {
                return Ok(Drained { complete: true, left: 0 });
            }
            // They may be missing in a database that was adopted or set back.
            must_declare |= fence == Fence::Lifted;
            if must_declare {
                match builder::declare(&parts.base.store, &sinks, &declared).await {
                    Ok(()) => {}
                    Err(Error::Start(error)) if error.class() != Some(Class::Refused) => {
                        parts.base.telemetry.database_failed("start", &error);
                        fence::wait(&shutdown).await;
                        continue;
                    }
                    refused => refused?,
                }
            }
            let base = parts.base.clone();
            let (stages, attempts) = (TaskTracker::new(), TaskTracker::new());
            let running = stages::run(
                parts.clone(),
                listen.clone(),
                (stages.clone(), attempts.clone()),
                health.draining.clone(),
                health.failed.clone(),
                shutdown.clone(),
            );
            tokio::select! {
                ended = running => return ended,
                () = fence::tripped(&base, &shutdown) => {}
            }
            // The stages are dropped, as when a relay is killed. What they know is of another database.
            for tracker in [stages, attempts] {
                tracker.close();
                if tokio::time::timeout(ENDS_WITHIN, tracker.wait()).await.is_err() {
                    tracing::warn!("a stage did not end in time and is abandoned");
                }
            }
            if let Some(stage) = health.failed.stage() {
                return Err(Error::StageEnded { stage });
            }
            parts = parts.anew();
            must_declare = true;
            health.sending.store(parts.sending.clone());
        }
    }
}

impl Health {
    /// Whether the database answers with a schema that fits, every stage works and gets anywhere, and the
    /// relay is not draining.
    ///
    /// # Errors
    /// What is wrong, as a sentence.
    pub async fn ready(&self) -> Result<(), String> {
        if let Some(stage) = self.failed.stage() {
            return Err(format!("the stage {stage} ended unexpectedly; the relay is stopping"));
        }
        if self.draining.load(Ordering::Acquire) {
            return Err("draining".to_owned());
        }
        if let Some((length, why)) = self.base.telemetry.stuck(self.base.settings.lease) {
            let length = crate::delivery::duration::format(Duration::from_secs(length.as_secs()));
            return Err(format!("no progress for {length}: {why}"));
        }
        match tokio::time::timeout(Duration::from_secs(3), self.base.store.inspect()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(crate::relay::telemetry::chain(&error)),
            Err(_) => Err("the database did not answer within 3 s".to_owned()),
        }
    }

    /// Asks the relay to read every subscription again, with the secrets and files to which it refers.
    pub fn reload(&self) {
        self.base.reload.asked.store(true, Ordering::Release);
        self.base.reload.news.notify_one();
    }

    /// The state of the relay as JSON, for `/readyz?verbose`.
    #[must_use]
    pub fn state(&self) -> serde_json::Value {
        let (base, sending) = (&self.base, self.sending.load());
        let numbers = sending.dispatch.numbers();
        let index = base.index.load();
        serde_json::json!({
            "relay": base.settings.name,
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.started.elapsed().as_secs(),
            "draining": self.draining.load(Ordering::Acquire),
            "failed_stage": self.failed.stage(),
            "fenced": base.store.is_fenced(),
            "no_progress": base.telemetry.stuck(base.settings.lease).map(|(_, why)| why),
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
