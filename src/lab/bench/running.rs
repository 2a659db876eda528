//! A running relay, with default settings except permits, and the sink that does nothing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use sqlx::postgres::PgPoolOptions;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    stage::{Database, SOON},
    within,
};
use crate::{
    delivery::Outcome,
    relay::{self, Builder, Relay, Settings},
    sink::{Outgoing, Problem, Report, Sink},
};

/// Limits of deliveries in flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Permits {
    pub(super) all: u32,
    pub(super) for_one: u32,
}

impl Permits {
    /// The relay's defaults.
    pub(super) fn standard() -> Self {
        let Settings { permits: all, permits_per_subscription: for_one, .. } = Settings::default();
        Self { all, for_one }
    }

    /// The same limit for one subscription as for all.
    pub(super) fn wide(all: u32) -> Self {
        Self { all, for_one: all }
    }

    /// Part of a metric's name.
    pub(super) fn label(self) -> String {
        if self.all == self.for_one {
            format!("{} permits", self.all)
        } else {
            format!("{} of {} permits", self.for_one, self.all)
        }
    }
}

/// A sink that only counts.
#[derive(Debug, Clone, Default)]
pub(super) struct Noop(Arc<AtomicU64>);

impl Noop {
    /// Deliveries so far.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Sink for Noop {
    const KIND: &'static str = "noop";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), _: &Outgoing) -> Report {
        self.0.fetch_add(1, Ordering::Relaxed);
        Outcome::Delivered.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(15)
    }
}

/// A relay in this process. Dropping it stops the relay without draining.
#[derive(Debug)]
pub(super) struct Running {
    /// Time of its start, after it had connected.
    pub(super) since: Instant,
    /// Changes when it has read new events.
    pub(super) news: watch::Receiver<u64>,
    stop: CancellationToken,
    tasks: JoinSet<Result<relay::Drained, relay::Error>>,
}

impl Running {
    pub(super) async fn start(
        database: &Database,
        permits: Permits,
        sink: impl Sink,
    ) -> anyhow::Result<Self> {
        Self::start_with(database, permits, |builder| Ok(builder.sink(sink))).await
    }

    /// Starts a relay with other sinks.
    pub(super) async fn start_with(
        database: &Database,
        permits: Permits,
        sinks: impl FnOnce(Builder) -> Result<Builder, Problem>,
    ) -> anyhow::Result<Self> {
        let settings = Settings {
            name: "bench".to_owned(),
            permits: permits.all,
            permits_per_subscription: permits.for_one,
            ..Settings::default()
        };
        let pool = PgPoolOptions::new().connect_lazy_with(database.relay_options.clone());
        let builder = sinks(Relay::builder(pool).settings(settings)).map_err(anyhow::Error::msg)?;
        let relay = within(SOON, "starting the relay", builder.build()).await?;
        let (stop, mut tasks) = (CancellationToken::new(), JoinSet::new());
        let (since, news) = (Instant::now(), relay.news());
        tasks.spawn(relay.run(stop.clone()));
        Ok(Self { since, news, stop, tasks })
    }

    /// Stops the relay without draining it.
    pub(super) async fn abort(mut self) {
        self.tasks.shutdown().await;
    }

    /// Drains the relay.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        let ended = tokio::time::timeout(SOON, self.tasks.join_next())
            .await
            .context("the relay did not stop in time")?;
        ended
            .context("the relay is gone")?
            .context("stopping the relay")?
            .context("stopping the relay")
            .map(drop)
    }
}
