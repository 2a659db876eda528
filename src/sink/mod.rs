//! The contract of a sink, and what every sink may stand on. Knows nothing of subscriptions, the outbox, configuration files or
//! the relay.
//!
//! A sink gets a checked target and what is sent, makes one attempt and *reports*. It never retries, sleeps, logs its outcome,
//! counts, or touches the outbox; it bears the same event twice; it puts no payload and no secret into a report. Deadlines,
//! panics, permits and verdicts belong to `relay/`.

pub mod address;
pub mod body;
#[cfg(any(feature = "redis", feature = "nats", feature = "amqp"))]
pub(crate) mod broker;
pub mod egress;
mod outgoing;
mod problem;
mod registry;
pub mod secret;
pub mod settings;
pub(crate) mod sqlstate;
pub mod template;
pub mod tls;

use std::{fmt, future::Future, time::Duration};

use serde::de::DeserializeOwned;

pub(crate) use self::outgoing::Lease;
pub use self::{
    outgoing::Outgoing,
    problem::Problem,
    registry::{Connection, Kind, Outlet, Registry, UNNAMED},
    settings::Settings,
};
use crate::delivery::{Outcome, Reason};

/// What a sink reports about one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What became of it.
    pub outcome: Outcome,
    /// The destination's status code, where it has such a thing.
    pub status: Option<u16>,
    /// The beginning of the destination's answer or of the error: at most 1 KiB, escaped, without secrets.
    pub answer: Option<String>,
    /// The request may have reached the destination although the outcome is not `Delivered`.
    pub ambiguous: bool,
    /// The sink has deleted the delivery itself, in the transaction of its effect.
    pub settled: bool,
}

impl Report {
    /// The same with what the destination or the client library said.
    #[must_use]
    pub fn saying(self, answer: impl fmt::Display) -> Self {
        Self { answer: Some(answer.to_string()), ..self }
    }

    /// The same, but the destination may have it.
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

/// How deliveries are put together for a sink that takes several at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Deliveries in one batch at most.
    pub max: usize,
    /// Bytes of payload in one batch at most; a larger one goes alone.
    pub bytes: usize,
    /// How long the first waits for others. Zero: what is at hand goes at once, and others gather while it is under way.
    pub wait: Duration,
    /// Batches of one subscription under way at once. One keeps the order of the log as long as nothing fails.
    pub in_flight: usize,
    /// One bad delivery can fail its whole batch: what failed before then travels alone, and so does what has one attempt only.
    pub shares_fate: bool,
}

impl Batch {
    /// For brokers: what is at hand, one batch at a time, each delivery with an answer of its own.
    pub const BROKER: Self =
        Self { max: 500, bytes: 4 * 1024 * 1024, wait: Duration::ZERO, in_flight: 1, shares_fate: false };
}

/// One kind of destination.
pub trait Sink: Send + Sync + 'static {
    /// The operator's word for it: `[sinks.<kind>]` and `subscriptions.sink`.
    const KIND: &'static str;
    /// Where in that system: made from `subscriptions.config`, checked when the subscription is loaded.
    type Target: fmt::Debug + Send + Sync + 'static;

    /// Checks a subscription's config.
    ///
    /// # Errors
    /// A sentence that names the field, such as `config.url: …`; it becomes the subscription's `state_reason`.
    fn target(&self, config: &serde_json::Value) -> Result<Self::Target, Problem>;

    /// What shares one breaker: `https://example.com`. `None`: no breaker.
    fn destination(&self, target: &Self::Target) -> Option<String>;

    /// How long one attempt may take altogether, at most 60 s.
    fn deadline(&self, target: &Self::Target) -> Duration;

    /// Whether it takes several deliveries at once. `None`: one by one, as many at a time as there are permits.
    fn batch(&self, target: &Self::Target) -> Option<Batch> {
        let _ = target;
        None
    }

    /// One attempt. The caller enforces a deadline by dropping the future.
    fn send(&self, target: &Self::Target, delivery: &Outgoing) -> impl Future<Output = Report> + Send;

    /// One attempt at several deliveries of one subscription, in the order of the log: a report for each, in the same order.
    /// More than one come only where [`Sink::batch`] allows it.
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

    /// The body that [`Sink::send`] would send, or why there is none, for people who try a subscription out. Sends nothing.
    fn preview(&self, target: &Self::Target, delivery: &Outgoing) -> Option<Result<String, Problem>> {
        let _ = (target, delivery);
        None
    }

    /// Whether the destination can be reached and used, without leaving anything there: for `pgoutbox check`. The caller
    /// enforces [`Sink::deadline`].
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    fn check(&self, target: &Self::Target) -> impl Future<Output = Result<(), Problem>> + Send {
        let _ = target;
        async { Ok(()) }
    }
}

/// A sink that is reached as an operator says below `[sinks.<kind>]`.
pub trait Configured: Sink + Sized {
    /// How to reach the system. A program that embeds a relay makes one itself.
    type Config: Clone + fmt::Debug + Send + Sync + 'static;

    /// Reads the keys of its section. Mistakes are noted in `settings`.
    fn read(settings: &mut Settings<'_>) -> Option<Self::Config>;

    /// Makes the sink. Connects to nothing: a destination that is down must not keep a relay from starting. `connection` is
    /// its name among those of its kind, which tells its breakers from theirs.
    ///
    /// # Errors
    /// A sentence that says what cannot be used.
    fn open(config: Self::Config, connection: &str) -> Result<Self, Problem>;
}

/// Reads a subscription's config into the fields a sink has. Unknown fields are refused where the type denies them.
///
/// # Errors
/// A sentence that begins with `config` and names the field.
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
