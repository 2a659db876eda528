//! Every log line about the flow, every metric, and the signals tests wait for, as functions named in the past tense.
//! Never sees a payload or a secret, and never decides.

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use tokio::sync::broadcast;
use uuid::Uuid;

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
