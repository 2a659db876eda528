//! All metrics: names, meanings and labels. A new one is one entry here.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct AttemptLabels {
    pub(super) sink: &'static str,
    pub(super) outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ReasonLabels {
    pub(super) reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SubscriptionLabels {
    pub(super) subscription: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LogLabels {
    pub(super) log: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CauseLabels {
    pub(super) cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SinkLabels {
    pub(super) sink: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StageLabels {
    pub(super) stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct TransportLabels {
    pub(super) transport: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ByLabels {
    pub(super) by: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BuildLabels {
    pub(super) version: &'static str,
}

macro_rules! metrics {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $name:literal, $make:expr;)*) => {
        pub(super) struct Metrics { $(pub(super) $field: $type,)* }

        impl Metrics {
            pub(super) fn register(registry: &mut Registry) -> Self {
                let metrics = Self { $($field: $make,)* };
                $(registry.register(
                    $name,
                    concat!($($doc),*).trim().trim_end_matches('.'),
                    metrics.$field.clone(),
                );)*
                metrics
            }
        }

        /// All metrics: names as they are registered, types, and meanings. Where metrics are read, a counter
        /// has the suffix `_total`, and a histogram `_bucket`, `_sum` or `_count`.
        pub const METRICS: &[(&str, &str, &str)] =
            &[$(($name, stringify!($type), concat!($($doc),*)),)*];
    };
}

pub(super) type AttemptSeconds = Family<SinkLabels, Histogram, fn() -> Histogram>;

metrics! {
    /// Events read from the log and matched.
    events_routed: Counter = "pgoutbox_events_routed", Counter::default();
    /// Deliveries recorded by routing.
    deliveries_routed: Counter = "pgoutbox_deliveries_routed", Counter::default();
    /// Events that a subscription was not sent because its match or filter could not be evaluated.
    filter_errors: Family<SubscriptionLabels, Counter> = "pgoutbox_filter_errors", Family::default();
    /// Deliveries whose payload does not fit an event type that only warns, or cannot be checked.
    schema_warnings: Family<CauseLabels, Counter> = "pgoutbox_schema_warnings", Family::default();
    /// Deliveries claimed after waiting: retries, backlog, expired leases.
    deliveries_claimed: Counter = "pgoutbox_deliveries_claimed", Counter::default();
    /// Claimed deliveries whose earlier claim ended without a verdict: a relay died or was cut off.
    leases_expired: Counter = "pgoutbox_leases_expired", Counter::default();
    /// Attempts by sink and outcome.
    attempts: Family<AttemptLabels, Counter> = "pgoutbox_attempts", Family::default();
    /// Attempts at deliveries that an earlier attempt may have brought to the destination already, by sink.
    deliveries_repeated: Family<SinkLabels, Counter> = "pgoutbox_deliveries_repeated", Family::default();
    /// Failed attempts by reason.
    attempt_failures: Family<ReasonLabels, Counter> = "pgoutbox_attempt_failures", Family::default();
    /// Attempts that were not made because this relay lacked descriptors, ports, memory, a network, or
    /// connections that a peer grants. Their deliveries wait.
    resources_lacked: Counter = "pgoutbox_resource_shortages", Counter::default();
    /// Duration of attempts.
    attempt_seconds: AttemptSeconds = "pgoutbox_attempt_duration_seconds",
        Family::new_with_constructor(seconds_histogram as fn() -> Histogram);
    /// Time from the insert of an event until its delivery is settled.
    delivery_seconds: Histogram = "pgoutbox_delivery_latency_seconds", seconds_histogram();
    /// Deliveries that were not sent because a newer event of their key waited.
    superseded: Counter = "pgoutbox_deliveries_superseded", Counter::default();
    /// Dead letters by reason.
    dead_letters: Family<ReasonLabels, Counter> = "pgoutbox_dead_letters", Family::default();
    /// Verdicts that changed nothing because the lease was lost: possible duplicates.
    stale_verdicts: Counter = "pgoutbox_stale_verdicts", Counter::default();
    /// Outstanding deliveries by subscription; counting stops at 100,000.
    outstanding: Family<SubscriptionLabels, Gauge> = "pgoutbox_outstanding_deliveries", Family::default();
    /// Events in the log that are not routed; counting stops at 100,000.
    unrouted: Gauge = "pgoutbox_unrouted_events", Gauge::default();
    /// Partitions that relays made, by log (events, attempts).
    partitions_made: Family<LogLabels, Counter> = "pgoutbox_retention_partitions_made", Family::default();
    /// Partitions that were dropped because they are old, by log (events, attempts).
    partitions_dropped: Family<LogLabels, Counter> =
        "pgoutbox_retention_partitions_dropped", Family::default();
    /// Partitions that are old enough to be dropped and stay: something is owed of them, by log.
    partitions_kept: Family<LogLabels, Gauge> = "pgoutbox_retention_partitions_kept", Family::default();
    /// Rows that were deleted because they are old, by table.
    rows_deleted: Family<LogLabels, Counter> = "pgoutbox_retention_rows_deleted", Family::default();
    /// Deliveries that became dead letters because their events are too old (retention.laggard).
    retention_dead_letters: Counter = "pgoutbox_retention_dead_letters", Counter::default();
    /// Age of the oldest event that is not routed.
    oldest_unrouted: Gauge<f64, AtomicU64> = "pgoutbox_oldest_unrouted_event_age_seconds", Gauge::default();
    /// For how long the oldest outstanding delivery has been owed, by subscription.
    oldest: Family<SubscriptionLabels, Gauge<f64, AtomicU64>> =
        "pgoutbox_oldest_delivery_age_seconds", Family::default();
    /// Free permits. 0 for long means that the relay is saturated.
    free_permits: Gauge = "pgoutbox_free_permits", Gauge::default();
    /// Deliveries leased to this relay that have not begun. If it is killed, they wait and are not repeated.
    leased_ahead: Gauge = "pgoutbox_leased_ahead_deliveries", Gauge::default();
    /// Deliveries in flight.
    in_flight: Gauge = "pgoutbox_in_flight_deliveries", Gauge::default();
    /// Deliveries that were answered and are not recorded yet.
    unsettled: Gauge = "pgoutbox_unsettled_deliveries", Gauge::default();
    /// Breakers that hold deliveries back: open, or with a probe under way.
    breakers_open: Gauge = "pgoutbox_open_breakers", Gauge::default();
    /// Subscriptions that this relay cannot use.
    invalid_subscriptions: Gauge = "pgoutbox_invalid_subscriptions", Gauge::default();
    /// Whether the listener is connected: 1, or 0 while the relay only polls.
    listener_connected: Gauge = "pgoutbox_listener_connected", Gauge::default();
    /// Times that the listener's connection was lost or silent.
    listener_losses: Counter = "pgoutbox_listener_losses", Counter::default();
    /// Failed queries by stage. Each is retried.
    database_failures: Family<StageLabels, Counter> = "pgoutbox_database_failures", Family::default();
    /// Times that the database had a new timeline: a standby was promoted.
    promotions: Counter = "pgoutbox_database_promotions", Counter::default();
    /// For how long routing or settling has failed again and again; 0 while it works.
    no_progress: Gauge<f64, AtomicU64> = "pgoutbox_no_progress_seconds", Gauge::default();
    /// Whether the outbox belongs to another database: 1 while nothing is sent before `pgoutbox adopt`.
    fenced: Gauge = "pgoutbox_fenced", Gauge::default();
    /// Live clients that are connected, by transport: `websocket` or `stream`.
    live_connections: Family<TransportLabels, Gauge> = "pgoutbox_live_connections", Family::default();
    /// Live clients that were refused because all places, or those of their address, were taken.
    live_refused: Counter = "pgoutbox_live_refused", Counter::default();
    /// Events sent to live clients.
    live_events_sent: Counter = "pgoutbox_live_events_sent", Counter::default();
    /// Times that a live client was told that it lags: it goes on from the log instead of from memory.
    live_lagging: Counter = "pgoutbox_live_lagging", Counter::default();
    /// Live clients that were sent away, by reason: `lagged`, `expired`, `stopping` or `other`.
    live_closed: Family<ReasonLabels, Counter> = "pgoutbox_live_closed", Family::default();
    /// Reads of the log for live clients: once for all of them (`feed`), or a page for those that are behind
    /// (`history`).
    live_log_reads: Family<ByLabels, Counter> = "pgoutbox_live_log_reads", Family::default();
    /// Time since the log was last read for all live clients; 0 while there are none.
    live_lag: Gauge<f64, AtomicU64> = "pgoutbox_live_lag_seconds", Gauge::default();
    /// Version of this relay, as a label.
    build: Family<BuildLabels, Gauge> = "pgoutbox_build_info", Family::default();
}

fn seconds_histogram() -> Histogram {
    Histogram::new([
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
        3_600.0,
    ])
}
