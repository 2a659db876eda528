//! The counters of each kind of sink, found once: an attempt looks up no labels.

use std::sync::OnceLock;

use prometheus_client::metrics::{counter::Counter, histogram::Histogram};

use super::metrics::{AttemptLabels, Metrics, SinkLabels};
use crate::delivery::Outcome;

/// Counters of one kind of sink. Each is made when it is first used.
#[derive(Debug, Default)]
struct OutletCounters {
    delivered: OnceLock<Counter>,
    retried: OnceLock<Counter>,
    rejected: OnceLock<Counter>,
    gone: OnceLock<Counter>,
    seconds: OnceLock<Histogram>,
}

/// The counters of all kinds of a relay.
#[derive(Debug, Default)]
pub(super) struct Outlets {
    kinds: OnceLock<Vec<(&'static str, OutletCounters)>>,
}

impl Outlets {
    /// Sets the kinds. Only the first call counts.
    pub(super) fn set(&self, kinds: impl Iterator<Item = &'static str>) {
        let _ = self.kinds.set(kinds.map(|kind| (kind, OutletCounters::default())).collect());
    }

    /// Counts an attempt.
    pub(super) fn count(&self, metrics: &Metrics, sink: &'static str, outcome: &Outcome, seconds: f64) {
        let unknown = OutletCounters::default();
        let kinds = self.kinds.get();
        let known = kinds.and_then(|kinds| kinds.iter().find(|(kind, _)| *kind == sink));
        let counters = known.map_or(&unknown, |(_, counters)| counters);
        let counter = match outcome {
            Outcome::Delivered => &counters.delivered,
            Outcome::Retry { .. } => &counters.retried,
            Outcome::Rejected { .. } => &counters.rejected,
            Outcome::Gone => &counters.gone,
        };
        let labels = || AttemptLabels { sink, outcome: outcome.code() };
        counter.get_or_init(|| metrics.attempts.get_or_create_owned(&labels())).inc();
        let histogram = || metrics.attempt_seconds.get_or_create_owned(&SinkLabels { sink });
        counters.seconds.get_or_init(histogram).observe(seconds);
    }
}
