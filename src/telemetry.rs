//! Every log line about the flow, every metric, and the signals tests wait for, as functions named in the past tense.
//! Never sees a payload or a secret, and never decides.

use std::{sync::Arc, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::{delivery::Delivery, event::Event, event_type::Cause, sinks::Report, store::Backlog, verdict::Reason};

/// What happened, for whoever waits for it. In every build; costs nothing when nobody listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signal {
    /// The relay's stages run.
    Started,
    /// A routing step was committed.
    Routed {
        /// Events read.
        events: usize,
        /// Deliveries made of them.
        deliveries: usize,
    },
    /// A subscription's match or filter could not be evaluated for an event, which was routed without it.
    FilterFailed {
        /// The event.
        event: Uuid,
        /// Name of the subscription.
        subscription: String,
    },
    /// A payload does not fit its event type, and is delivered all the same.
    SchemaWarned {
        /// The event.
        event: Uuid,
    },
    /// Due deliveries were leased.
    Claimed {
        /// How many.
        deliveries: usize,
    },
    /// An attempt ended and its verdict was recorded.
    Settled {
        /// The event.
        event: Uuid,
        /// Name of the subscription.
        subscription: String,
        /// `settled`, `retry`, `dead_letter`, `gone` or `stale`.
        verdict: &'static str,
    },
    /// The relay found no work and sleeps until the doorbell rings.
    Slept,
    /// The doorbell rang, the poll came, or a known due time.
    Woke,
    /// The index of subscriptions was swapped.
    Reloaded {
        /// The generation it was read at.
        generation: i64,
    },
    /// The listener connection was (re)built.
    ListenerConnected,
    /// The listener connection was lost or its canary went missing.
    ListenerLost,
    /// A subscription became invalid, gone or ok.
    SubscriptionChanged {
        /// Its name.
        subscription: String,
        /// The state.
        state: &'static str,
    },
    /// A breaker opened or closed.
    Breaker {
        /// The destination.
        destination: String,
        /// Whether it is open now.
        open: bool,
    },
    /// A query failed and will be tried again.
    DatabaseFailed,
}

/// How many signals a slow waiter may fall behind before it misses some.
const SIGNALS_KEPT: usize = 65_536;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    sink: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SubscriptionLabels {
    subscription: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabels {
    sink: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $name:literal, $make:expr;)*) => {
        struct Metrics { $($field: $type,)* }

        impl Metrics {
            fn register(registry: &mut Registry) -> Self {
                let metrics = Self { $($field: $make,)* };
                $(registry.register($name, concat!($($doc),*).trim().trim_end_matches('.'), metrics.$field.clone());)*
                metrics
            }
        }

        /// Every metric: its name as Prometheus shows it without `_total`, and what it means.
        pub const METRICS: &[(&str, &str)] = &[$(($name, concat!($($doc),*)),)*];
    };
}

type AttemptSeconds = Family<SinkLabels, Histogram, fn() -> Histogram>;

metrics! {
    /// Events read from the log and matched.
    events_routed: Counter = "pgoutbox_events_routed", Counter::default();
    /// Deliveries that routing made.
    deliveries_routed: Counter = "pgoutbox_deliveries_routed", Counter::default();
    /// Events that a subscription was not sent because its match or filter could not be evaluated.
    filter_errors: Family<SubscriptionLabels, Counter> = "pgoutbox_filter_errors", Family::default();
    /// Deliveries whose payload an event type only warns of: it does not fit, is unreadable, or the type is invalid.
    schema_warnings: Family<CauseLabels, Counter> = "pgoutbox_schema_warnings", Family::default();
    /// Deliveries claimed after waiting: retries, backlog, expired leases.
    deliveries_claimed: Counter = "pgoutbox_deliveries_claimed", Counter::default();
    /// Claimed deliveries whose earlier claim had ended without a verdict: a relay died or was cut off.
    leases_expired: Counter = "pgoutbox_leases_expired", Counter::default();
    /// Attempts by sink and outcome.
    attempts: Family<AttemptLabels, Counter> = "pgoutbox_attempts", Family::default();
    /// Failed attempts by reason.
    attempt_failures: Family<ReasonLabels, Counter> = "pgoutbox_attempt_failures", Family::default();
    /// Duration of attempts.
    attempt_seconds: AttemptSeconds = "pgoutbox_attempt_duration_seconds", Family::new_with_constructor(seconds_histogram as fn() -> Histogram);
    /// From the event's insert to the settled delivery.
    delivery_seconds: Histogram = "pgoutbox_delivery_latency_seconds", seconds_histogram();
    /// Deliveries given up, by reason.
    dead_letters: Family<ReasonLabels, Counter> = "pgoutbox_dead_letters", Family::default();
    /// Verdicts that changed nothing because the lease was lost: possible duplicates.
    stale_verdicts: Counter = "pgoutbox_stale_verdicts", Counter::default();
    /// Outstanding deliveries by subscription; counting stops at 100,000.
    outstanding: Family<SubscriptionLabels, Gauge> = "pgoutbox_outstanding_deliveries", Family::default();
    /// Age of the oldest outstanding delivery by subscription. The one alert everybody needs.
    oldest: Family<SubscriptionLabels, Gauge<f64, std::sync::atomic::AtomicU64>> = "pgoutbox_oldest_delivery_age_seconds", Family::default();
    /// Permits that are free: 0 for long means that the relay is saturated.
    free_permits: Gauge = "pgoutbox_free_permits", Gauge::default();
    /// Breakers that are open or probing.
    breakers_open: Gauge = "pgoutbox_open_breakers", Gauge::default();
    /// Subscriptions this relay cannot use.
    invalid_subscriptions: Gauge = "pgoutbox_invalid_subscriptions", Gauge::default();
    /// Whether the doorbell can be heard: 1, or 0 while the relay only polls.
    listener_connected: Gauge = "pgoutbox_listener_connected", Gauge::default();
    /// Times the listener connection was lost or fell silent.
    listener_losses: Counter = "pgoutbox_listener_losses", Counter::default();
    /// Queries that failed, by stage; each is tried again.
    database_failures: Family<StageLabels, Counter> = "pgoutbox_database_failures", Family::default();
    /// The version that runs.
    build: Family<BuildLabels, Gauge> = "pgoutbox_build_info", Family::default();
}

fn seconds_histogram() -> Histogram {
    Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0])
}

/// Metrics and signals of one relay. Cheap to share; there is no global one.
pub struct Telemetry {
    registry: Registry,
    metrics: Metrics,
    signals: broadcast::Sender<Signal>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Fresh metrics, all zero.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        let (signals, _) = broadcast::channel(SIGNALS_KEPT);
        Arc::new(Self { registry, metrics, signals })
    }

    /// All metrics in OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut page = String::new();
        // Writing into a String does not fail.
        let _ = text::encode(&mut page, &self.registry);
        page
    }

    /// What happens from now on. Ask first, act, then wait.
    #[must_use]
    pub fn signals(&self) -> broadcast::Receiver<Signal> {
        self.signals.subscribe()
    }

    fn signal(&self, signal: impl FnOnce() -> Signal) {
        if self.signals.receiver_count() > 0 {
            // An error means that nobody listens any more.
            let _ = self.signals.send(signal());
        }
    }

    pub(crate) fn started(&self, relay: &str, subscriptions: usize) {
        tracing::info!(relay, subscriptions, version = env!("CARGO_PKG_VERSION"), "relay started");
        self.signal(|| Signal::Started);
    }

    pub(crate) fn stopping(&self, relay: &str, in_flight: usize) {
        tracing::info!(relay, in_flight, "relay is stopping: finishing what is in flight");
    }

    pub(crate) fn stopped(&self, relay: &str, left: usize) {
        if left == 0 {
            tracing::info!(relay, "relay stopped");
        } else {
            tracing::warn!(relay, left, "relay stopped before everything in flight had ended; another relay will repeat it");
        }
    }

    pub(crate) fn routed(&self, events: usize, deliveries: usize) {
        self.metrics.events_routed.inc_by(events as u64);
        self.metrics.deliveries_routed.inc_by(deliveries as u64);
        tracing::debug!(events, deliveries, "routed");
        self.signal(|| Signal::Routed { events, deliveries });
    }

    /// Every one is counted; told is the first of a while.
    pub(crate) fn filter_failed(&self, subscription: &str, event: &Event, why: &str, is_news: bool) {
        self.metrics.filter_errors.get_or_create(&SubscriptionLabels { subscription: subscription.to_owned() }).inc();
        if is_news {
            tracing::warn!(event.id = %event.id, subscription, why, "a filter could not be evaluated: no match");
        } else {
            tracing::debug!(event.id = %event.id, subscription, why, "a filter could not be evaluated: no match");
        }
        self.signal(|| Signal::FilterFailed { event: event.id, subscription: subscription.to_owned() });
    }

    /// Every one is counted; told is the first of a while.
    pub(crate) fn schema_warned(&self, event: &Event, cause: Cause, why: &str, is_news: bool) {
        self.metrics.schema_warnings.get_or_create(&CauseLabels { cause: cause.code() }).inc();
        if is_news {
            tracing::warn!(event.id = %event.id, cause = cause.code(), why, "a payload does not fit its event type; delivering it");
        }
        self.signal(|| Signal::SchemaWarned { event: event.id });
    }

    pub(crate) fn event_type_judged(&self, topic: &str, version: i32, problem: Option<&str>) {
        match problem {
            Some(problem) => tracing::error!(topic, version, problem, "an event type cannot be used until it is mended"),
            None => tracing::info!(topic, version, "event type is usable again"),
        }
    }

    pub(crate) fn claimed(&self, deliveries: usize, expired: usize) {
        self.metrics.deliveries_claimed.inc_by(deliveries as u64);
        self.metrics.leases_expired.inc_by(expired as u64);
        tracing::debug!(deliveries, expired, "claimed");
        self.signal(|| Signal::Claimed { deliveries });
    }

    pub(crate) fn attempted(&self, delivery: &Delivery, report: &Report, took: Duration) {
        let sink = delivery.subscription.outlet.kind();
        self.metrics.attempts.get_or_create(&AttemptLabels { sink, outcome: report.outcome.code() }).inc();
        self.metrics.attempt_seconds.get_or_create(&SinkLabels { sink }).observe(took.as_secs_f64());
        if let Some(reason) = report.outcome.reason() {
            self.metrics.attempt_failures.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
            tracing::debug!(
                event.id = %delivery.event.id, subscription = delivery.subscription.row.name, attempt = delivery.attempt,
                reason = reason.code(), status = report.status, "attempt failed"
            );
        }
    }

    pub(crate) fn settled(&self, delivery: &Delivery, age: Duration) {
        self.metrics.delivery_seconds.observe(age.as_secs_f64());
        self.signal_settled(delivery, "settled");
    }

    pub(crate) fn retry_scheduled(&self, delivery: &Delivery, wait: Duration) {
        tracing::debug!(
            event.id = %delivery.event.id, subscription = delivery.subscription.row.name, attempt = delivery.attempt,
            wait_seconds = wait.as_secs_f64(), "retry scheduled"
        );
        self.signal_settled(delivery, "retry");
    }

    pub(crate) fn dead_lettered(&self, delivery: &Delivery, reason: Reason) {
        self.metrics.dead_letters.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
        tracing::warn!(
            event.id = %delivery.event.id, subscription = delivery.subscription.row.name, attempt = delivery.attempt,
            reason = reason.code(), "dead letter"
        );
        self.signal_settled(delivery, "dead_letter");
    }

    pub(crate) fn held(&self, delivery: &Delivery) {
        self.signal_settled(delivery, "gone");
    }

    pub(crate) fn stale_verdict(&self, delivery: &Delivery) {
        self.metrics.stale_verdicts.inc();
        tracing::warn!(
            event.id = %delivery.event.id, subscription = delivery.subscription.row.name, attempt = delivery.attempt,
            "the lease was lost before the verdict; the destination may get this event again"
        );
        self.signal_settled(delivery, "stale");
    }

    fn signal_settled(&self, delivery: &Delivery, verdict: &'static str) {
        self.signal(|| Signal::Settled { event: delivery.event.id, subscription: delivery.subscription.row.name.clone(), verdict });
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

    pub(crate) fn subscription_changed(&self, subscription: &str, state: &'static str, reason: &str) {
        if state == "ok" {
            tracing::info!(subscription, state, "subscription is usable again");
        } else {
            tracing::error!(subscription, state, reason, "subscription gets no more deliveries until it is mended");
        }
        self.signal(|| Signal::SubscriptionChanged { subscription: subscription.to_owned(), state });
    }

    pub(crate) fn subscription_paused(&self, subscription: &str, pause: Duration) {
        tracing::info!(subscription, pause_seconds = pause.as_secs_f64(), "the destination asked for a pause");
    }

    pub(crate) fn start_ended(&self, subscription: &str) {
        tracing::info!(subscription, "every event from before the subscription is owed to it now");
    }

    pub(crate) fn breaker_changed(&self, destination: &str, open: bool, wait: Duration) {
        if open {
            tracing::warn!(destination, wait_seconds = wait.as_secs_f64(), "breaker opened: nothing is sent until a probe succeeds");
        } else {
            tracing::info!(destination, "breaker closed");
        }
        self.signal(|| Signal::Breaker { destination: destination.to_owned(), open });
    }

    pub(crate) fn listener_connected(&self) {
        self.metrics.listener_connected.set(1);
        tracing::info!("listening for the doorbell");
        self.signal(|| Signal::ListenerConnected);
    }

    pub(crate) fn listener_lost(&self, why: &str) {
        self.metrics.listener_connected.set(0);
        self.metrics.listener_losses.inc();
        tracing::warn!(why, "the doorbell cannot be heard; polling meanwhile");
        self.signal(|| Signal::ListenerLost);
    }

    pub(crate) fn database_failed(&self, stage: &'static str, error: &(dyn std::error::Error + 'static)) {
        self.metrics.database_failures.get_or_create(&StageLabels { stage }).inc();
        tracing::warn!(stage, error = chain(error), "the database did not do it; trying again");
        self.signal(|| Signal::DatabaseFailed);
    }

    pub(crate) fn permits_measured(&self, free: u32, breakers_open: usize) {
        self.metrics.free_permits.set(i64::from(free));
        self.metrics.breakers_open.set(i64::try_from(breakers_open).unwrap_or(i64::MAX));
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
        // Transparent wrappers say the same twice.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        source = cause.source();
    }
    line
}
