//! Every log line about the flow, every metric, and the signals that tests wait for, as functions named in
//! the past tense. Never sees a payload or a secret, and never decides.

mod deliveries;
mod listener;
mod live;
mod metrics;
mod outlets;
mod progress;
mod retained;
mod signal;
#[cfg(feature = "cli")]
mod sources;

use std::{
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use crate::{
    delivery::SubscriptionId,
    store::{Backlog, LogStatus, SubscriptionState},
};
use prometheus_client::{encoding::text, registry::Registry};
use tokio::sync::broadcast;

#[cfg(feature = "cli")]
pub(crate) use self::sources::together;
use self::{
    live::LiveRead,
    metrics::{BuildLabels, Metrics, StageLabels, SubscriptionLabels},
    outlets::Outlets,
    progress::Progress,
};
pub use self::{metrics::METRICS, signal::Signal};

/// Signals kept for a slow receiver. It misses older ones.
const SIGNALS_KEPT: usize = 65_536;

/// Stages that retry what failed until it works, and do nothing else meanwhile.
const RETRIED: [&str; 2] = ["work", "settle"];
/// How often the log says that this relay lacks something.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// Metrics and signals of a relay. There is no global instance.
pub struct Telemetry {
    registry: Registry,
    metrics: Metrics,
    outlets: Outlets,
    /// Made when somebody asks for them: it takes some MiB.
    signals: OnceLock<broadcast::Sender<Signal>>,
    warned_of_resources: Mutex<Option<Instant>>,
    progress: Progress,
    live_read: LiveRead,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// New metrics, all zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::within(Registry::default())
    }

    /// New metrics, all zero, with the label `source`.
    #[cfg(feature = "cli")]
    #[must_use]
    pub(crate) fn of_source(name: &str) -> Arc<Self> {
        let label = ("source".into(), name.to_owned().into());
        Self::within(Registry::with_labels(std::iter::once(label)))
    }

    fn within(mut registry: Registry) -> Arc<Self> {
        let metrics = Metrics::register(&mut registry);
        metrics.build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        Arc::new(Self {
            registry,
            metrics,
            outlets: Outlets::default(),
            signals: OnceLock::new(),
            warned_of_resources: Mutex::default(),
            progress: Progress::default(),
            live_read: LiveRead::default(),
        })
    }

    /// All metrics in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        self.metrics.live_lag.set(self.live_read.age());
        let mut page = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// Signals from now on. Subscribe before the act whose signal you wait for.
    #[must_use]
    pub fn signals(&self) -> broadcast::Receiver<Signal> {
        self.signals.get_or_init(|| broadcast::channel(SIGNALS_KEPT).0).subscribe()
    }

    /// Says which kinds of sinks there are, so that their counters are looked up once.
    pub(crate) fn sinks_known(&self, kinds: impl Iterator<Item = &'static str>) {
        self.outlets.set(kinds);
    }

    fn signal(&self, signal: impl FnOnce() -> Signal) {
        if let Some(signals) = self.signals.get()
            && signals.receiver_count() > 0
        {
            // An error means that all receivers are dropped.
            let _ = signals.send(signal());
        }
    }

    pub(crate) fn started(&self, relay: &str, subscriptions: usize) {
        tracing::info!(relay, subscriptions, version = env!("CARGO_PKG_VERSION"), "relay started");
        self.signal(|| Signal::Started);
    }

    /// Nothing is sent until an operator adopts the database. Says why once.
    pub(crate) fn fenced(&self, error: &crate::store::Error, is_news: bool) {
        self.metrics.fenced.set(1);
        if is_news {
            tracing::error!(error = chain(error), "fenced");
            self.signal(|| Signal::Fenced);
        }
    }

    pub(crate) fn passed(&self, was_fenced: bool) {
        self.metrics.fenced.set(0);
        if was_fenced {
            tracing::info!("the database was adopted");
        }
    }

    pub(crate) fn stopping(&self, relay: &str, in_flight: usize) {
        tracing::info!(relay, in_flight, "relay is stopping, waiting for deliveries in flight");
    }

    pub(crate) fn stage_ended(&self, stage: &'static str) {
        tracing::error!(stage, "a stage ended unexpectedly, which is a bug: the relay stops");
    }

    pub(crate) fn stopped(&self, relay: &str, left: usize) {
        if left == 0 {
            tracing::info!(relay, "relay stopped");
        } else {
            tracing::warn!(
                relay,
                left,
                "relay stopped before everything in flight was recorded; the rest will be attempted again"
            );
        }
    }

    pub(crate) fn routed(&self, events: usize, deliveries: usize) {
        self.metrics.events_routed.inc_by(events as u64);
        self.metrics.deliveries_routed.inc_by(deliveries as u64);
        tracing::debug!(events, deliveries, "routed");
        self.signal(|| Signal::Routed { events, deliveries });
    }

    pub(crate) fn event_type_checked(&self, topic: &str, version: i32, problem: Option<&str>) {
        match problem {
            Some(problem) => {
                tracing::error!(topic, version, problem, "event type cannot be used until it is fixed")
            }
            None => tracing::info!(topic, version, "event type is usable again"),
        }
    }

    pub(crate) fn slept(&self) {
        self.signal(|| Signal::Slept);
    }

    pub(crate) fn woke(&self) {
        self.signal(|| Signal::Woke);
    }

    pub(crate) fn reloaded(&self, generation: i64, subscriptions: usize, invalid: usize) {
        self.metrics.invalid_subscriptions.set(i64::try_from(invalid).unwrap_or(i64::MAX));
        tracing::info!(generation, subscriptions, invalid, "subscriptions loaded");
        self.signal(|| Signal::Reloaded { generation });
    }

    pub(crate) fn subscription_changed(&self, subscription: &str, state: SubscriptionState, reason: &str) {
        let code = state.code();
        if state == SubscriptionState::Ok {
            tracing::info!(subscription, state = code, "subscription is usable again");
        } else {
            tracing::error!(
                subscription,
                state = code,
                reason,
                "subscription gets no more deliveries until it is fixed"
            );
        }
        self.signal(|| Signal::SubscriptionChanged { subscription: subscription.to_owned(), state });
    }

    pub(crate) fn subscription_unreadable(&self, id: SubscriptionId, why: &str) {
        tracing::error!(
            subscription_id = id.0,
            why,
            "a row of outbox.subscriptions cannot be read; its previous version stays in use"
        );
    }

    pub(crate) fn subscription_paused(&self, subscription: &str, pause: Duration) {
        tracing::info!(
            subscription,
            pause_seconds = pause.as_secs_f64(),
            "the destination asked for a pause"
        );
    }

    pub(crate) fn start_ended(&self, subscription: &str) {
        tracing::info!(subscription, "backfill ended: every past event is recorded for the subscription");
    }

    pub(crate) fn breaker_changed(&self, destination: &str, open: bool, wait: Duration) {
        if open {
            tracing::warn!(
                destination,
                wait_seconds = wait.as_secs_f64(),
                "breaker opened: nothing is sent until a probe succeeds"
            );
        } else {
            tracing::info!(destination, "breaker closed");
        }
        self.signal(|| Signal::Breaker { destination: destination.to_owned(), open });
    }

    pub(crate) fn database_failed(&self, stage: &'static str, error: &(dyn std::error::Error + 'static)) {
        self.metrics.database_failures.get_or_create(&StageLabels { stage }).inc();
        let why = chain(error);
        tracing::warn!(stage, error = why, "query failed, retrying");
        if RETRIED.contains(&stage) {
            self.progress.failed(stage, why, Instant::now());
        }
        self.signal(|| Signal::DatabaseFailed);
    }

    /// Ends a series of failures of a stage.
    pub(crate) fn database_worked(&self, stage: &'static str) {
        self.progress.worked(stage);
    }

    /// For how long a stage has failed again and again, if that is at least `least`, and a sentence about it.
    pub(crate) fn stuck(&self, least: Duration) -> Option<(Duration, String)> {
        let stuck = self.progress.stuck(least, Instant::now());
        let seconds = stuck.as_ref().map_or(0.0, |(length, _)| length.as_secs_f64());
        self.metrics.no_progress.set(seconds);
        stuck
    }

    pub(crate) fn permits_measured(&self, free: u32, breakers_open: usize) {
        self.metrics.free_permits.set(i64::from(free));
        self.metrics.breakers_open.set(i64::try_from(breakers_open).unwrap_or(i64::MAX));
    }

    pub(crate) fn log_measured(&self, log: &LogStatus) {
        self.metrics.unrouted.set(log.unrouted);
        self.metrics.oldest_unrouted.set(log.oldest_age_seconds.unwrap_or(0.0));
    }

    pub(crate) fn backlog_measured(&self, rows: &[Backlog]) {
        self.metrics.outstanding.clear();
        self.metrics.oldest.clear();
        for row in rows {
            let labels = SubscriptionLabels { subscription: row.name.clone() };
            self.metrics.outstanding.get_or_create(&labels).set(row.outstanding);
            self.metrics.oldest.get_or_create(&labels).set(row.oldest_age.unwrap_or(0.0));
        }
    }
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        // Transparent wrappers repeat the text of their cause.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
