//! What live clients are sent, and why they are sent away. Many clients share these counters, so they are
//! counted for a few messages at once, and looked up by label only when a client comes or goes.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use super::{
    Telemetry,
    metrics::{ByLabels, ReasonLabels, TransportLabels},
};

/// When the log was read last for all live clients; none: there are none.
#[derive(Debug, Default)]
pub(super) struct LiveRead(Mutex<Option<Instant>>);

impl LiveRead {
    /// Seconds since then.
    pub(super) fn age(&self) -> f64 {
        let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(0.0, |last| last.elapsed().as_secs_f64())
    }
}

impl Telemetry {
    /// A client has connected, by `websocket` or `stream`.
    pub(crate) fn live_connected(&self, transport: &'static str) {
        self.metrics.live_connections.get_or_create(&TransportLabels { transport }).inc();
    }

    /// A client that had connected is gone.
    pub(crate) fn live_left(&self, transport: &'static str) {
        self.metrics.live_connections.get_or_create(&TransportLabels { transport }).dec();
    }

    /// There was no place for a client.
    pub(crate) fn live_refused(&self) {
        self.metrics.live_refused.inc();
    }

    /// Events were handed to a connection.
    pub(crate) fn live_sent(&self, events: usize) {
        self.metrics.live_events_sent.inc_by(events as u64);
    }

    /// A client was told that it lags.
    pub(crate) fn live_lagged(&self) {
        self.metrics.live_lagging.inc();
    }

    /// A connection was closed by the gateway.
    pub(crate) fn live_closed(&self, reason: &'static str) {
        self.metrics.live_closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// The log was read once for all clients.
    pub(crate) fn live_feed_read(&self) {
        self.metrics.live_log_reads.get_or_create(&ByLabels { by: "feed" }).inc();
        *self.live_read.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// The log is no longer read: there are no clients.
    pub(crate) fn live_feed_rested(&self) {
        *self.live_read.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A page of the log was read for clients that are behind.
    pub(crate) fn live_history_read(&self) {
        self.metrics.live_log_reads.get_or_create(&ByLabels { by: "history" }).inc();
    }
}
