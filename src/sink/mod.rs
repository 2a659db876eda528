//! The contract of a sink, and helpers for all sinks. Knows nothing of subscriptions, the outbox,
//! configuration files or the relay.
//!
//! A sink gets a checked target and an event, makes one attempt and *reports*. It never retries, sleeps, logs
//! outcomes, counts, or touches the outbox. It must accept the same event twice, and puts no payload and no
//! secret into a report. `relay/` handles deadlines, panics, permits and verdicts.

mod about;
pub mod address;
pub mod body;
#[cfg(any(feature = "redis", feature = "nats", feature = "amqp"))]
pub(crate) mod broker;
pub mod egress;
mod layer;
mod outgoing;
pub(crate) mod plain;
mod problem;
mod registry;
pub(crate) mod redact;
pub mod secret;
pub mod servers;
pub(crate) mod session;
pub mod settings;
pub(crate) mod shortage;
pub(crate) mod sqlstate;
pub mod template;
pub mod tls;

use std::{fmt, future::Future, time::Duration};

use serde::de::DeserializeOwned;

pub(crate) use self::outgoing::{Lease, Place};
pub use self::{
    about::headers_about,
    layer::{Layer, Next, Timeout},
    outgoing::{Occasion, Outgoing},
    problem::Problem,
    registry::{Connection, Kind, Outlet, Registry, UNNAMED},
    settings::Settings,
};
use crate::delivery::{Outcome, Reason};

/// What a sink reports about one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Result of the attempt.
    pub outcome: Outcome,
    /// Status code of the destination, if it has one, such as HTTP's.
    pub status: Option<u16>,
    /// Beginning of the destination's answer or of the error: at most 1 KiB, escaped, without secrets.
    pub answer: Option<String>,
    /// Whether the destination may have the event although the outcome is not `Delivered`.
    pub ambiguous: bool,
    /// Whether the sink has deleted the delivery itself, in the transaction of its effect.
    pub settled: bool,
}

impl Report {
    /// Sets the answer of the destination or the error of the client library.
    #[must_use]
    pub fn with_answer(self, answer: impl fmt::Display) -> Self {
        Self { answer: Some(answer.to_string()), ..self }
    }

    /// Marks that the destination may have the event.
    #[must_use]
    pub fn ambiguous(self) -> Self {
        Self { ambiguous: true, ..self }
    }
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, status: None, answer: None, ambiguous: false, settled: false }
    }
}

/// What a sink would send in one attempt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Lines before the body, such as those of an HTTP request, without secrets.
    pub head: Vec<String>,
    /// The body.
    pub body: String,
}

/// How deliveries are batched for a sink that takes several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Most deliveries in one batch.
    pub max: usize,
    /// Most bytes of payload in one batch. A larger payload is sent alone.
    pub bytes: usize,
    /// How long the first delivery waits for others. With zero a batch is sent at once, and the next one
    /// grows meanwhile.
    pub wait: Duration,
    /// Batches of one subscription in flight at once. With 1 the order of the log is kept while nothing
    /// fails.
    pub in_flight: usize,
    /// Whether one bad delivery can fail its whole batch. If so, retries and deliveries with a single attempt
    /// are sent alone.
    pub shares_fate: bool,
}

impl Batch {
    /// For brokers: one batch at a time, sent at once, with a separate answer for each delivery.
    pub const BROKER: Self =
        Self { max: 500, bytes: 4 * 1024 * 1024, wait: Duration::ZERO, in_flight: 1, shares_fate: false };
}

/// One kind of destination.
pub trait Sink: Send + Sync + 'static {
    /// Name of the kind, as in `[sinks.<kind>]` and `subscriptions.sink`.
    const KIND: &'static str;
    /// Whether it records itself that a delivery is settled, in the transaction of its effect.
    const SETTLES: bool = false;
    /// Place at the destination: parsed from `subscriptions.config` when the subscription is loaded.
    type Target: fmt::Debug + Send + Sync + 'static;

    /// Checks a subscription's config.
    ///
    /// # Errors
    /// A message that names the field, such as `config.url: …`. It becomes the subscription's `state_reason`.
    fn target(&self, config: &serde_json::Value) -> Result<Self::Target, Problem>;

    /// Name of the breaker that the target shares with others, such as `https://example.com`; none for no
    /// breaker.
    fn destination(&self, target: &Self::Target) -> Option<String>;

    /// Deadline of one attempt, at most 60 s.
    fn deadline(&self, target: &Self::Target) -> Duration;

    /// Batching of deliveries. With none, each delivery is sent by itself, concurrently up to the permits.
    fn batch(&self, target: &Self::Target) -> Option<Batch> {
        let _ = target;
        None
    }

    /// Makes one attempt. The caller enforces the deadline by dropping the future.
    fn send(&self, target: &Self::Target, delivery: &Outgoing) -> impl Future<Output = Report> + Send;

    /// Makes one attempt for several deliveries of one subscription, in the order of the log. Returns a
    /// report for each, in the same order. Called with more than one delivery only if [`Sink::batch`] allows
    /// it.
    fn send_batch(
        &self,
        target: &Self::Target,
        deliveries: &[Outgoing],
    ) -> impl Future<Output = Vec<Report>> + Send {
        async move {
            let mut reports = Vec::with_capacity(deliveries.len());
            for delivery in deliveries {
                reports.push(self.send(target, delivery).await);
            }
            reports
        }
    }

    /// What [`Sink::send`] would send, or why it cannot be made; used to try a subscription. Sends nothing.
    /// None if it is the payload.
    fn preview(&self, target: &Self::Target, delivery: &Outgoing) -> Option<Result<Preview, Problem>> {
        let _ = (target, delivery);
        None
    }

    /// Checks that the destination can be reached and used, without leaving anything there; used by `pgoutbox
    /// check`. The caller enforces [`Sink::deadline`].
    ///
    /// # Errors
    /// What is wrong.
    fn check(&self, target: &Self::Target) -> impl Future<Output = Result<(), Problem>> + Send {
        let _ = target;
        async { Ok(()) }
    }
}

/// A sink whose connection an operator configures in `[sinks.<kind>]`.
pub trait Configured: Sink + Sized {
    /// Configuration of the connection. A program that embeds a relay can construct it.
    type Config: Clone + fmt::Debug + Send + Sync + 'static;

    /// Reads the keys of the section. Mistakes are recorded in `settings`.
    fn read(settings: &mut Settings<'_>) -> Option<Self::Config>;

    /// Makes the sink without connecting: a relay must start although a destination is down. `connection` is
    /// the name of this connection, which keeps its breakers apart from those of others.
    ///
    /// # Errors
    /// What is wrong with the configuration.
    fn open(config: Self::Config, connection: &str) -> Result<Self, Problem>;
}

/// Deserializes a subscription's config. Unknown fields are refused if the type denies them.
///
/// # Errors
/// A message that begins with `config` and names the field.
pub fn parse_config<T: DeserializeOwned>(config: &serde_json::Value) -> Result<T, Problem> {
    T::deserialize(config).map_err(|error| format!("config: {error}").into())
}

/// The report of a batch of one.
#[must_use]
pub fn only(reports: Vec<Report>) -> Report {
    reports
        .into_iter()
        .next()
        .unwrap_or_else(|| Outcome::Retry { reason: Reason::SinkBroken, after: None }.into())
}
