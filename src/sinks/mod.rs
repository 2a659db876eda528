//! Sinks: where deliveries go. The contract, the registry, and the list of kinds.
//!
//! A sink gets a checked target and a delivery, makes one attempt and *reports*. It never retries, sleeps, logs its outcome,
//! counts, or touches the outbox; it bears the same delivery twice; it puts no payload and no secret into a report.
//! Deadlines, panics, permits and verdicts belong to `relay/`.

pub mod webhook;

use std::{any::Any, collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc};

use crate::{delivery::Delivery, verdict::Outcome};

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
}

impl From<Outcome> for Report {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, status: None, answer: None, ambiguous: false }
    }
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
    fn target(&self, config: &serde_json::Value) -> Result<Self::Target, String>;

    /// What shares one breaker: `https://example.com`. `None`: no breaker.
    fn destination(&self, target: &Self::Target) -> Option<String>;

    /// One attempt. The caller enforces a deadline by dropping the future.
    fn send(&self, target: &Self::Target, delivery: &Delivery) -> impl Future<Output = Report> + Send;

    /// How long one attempt may take altogether, at most 60 s.
    fn deadline(&self, target: &Self::Target) -> std::time::Duration;
}

/// A sink together with a checked target: all that `deliver` ever sees.
#[derive(Clone)]
pub struct Outlet {
    sink: Arc<dyn ErasedSink>,
    target: Arc<dyn Any + Send + Sync>,
    destination: Option<Arc<str>>,
    deadline: std::time::Duration,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet").field("sink", &self.sink.kind()).field("destination", &self.destination).finish_non_exhaustive()
    }
}

impl Outlet {
    /// Where nothing can be sent: stands in for a target that could not be used.
    #[must_use]
    pub fn none() -> Self {
        Self { sink: Arc::new(Nowhere), target: Arc::new(()), destination: None, deadline: std::time::Duration::ZERO }
    }

    /// One attempt.
    pub async fn send(&self, delivery: &Delivery) -> Report {
        self.sink.send(&*self.target, delivery).await
    }

    /// The kind of its sink.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.sink.kind()
    }

    /// What shares one breaker with it.
    #[must_use]
    pub fn destination(&self) -> Option<&Arc<str>> {
        self.destination.as_ref()
    }

    /// How long one attempt may take altogether.
    #[must_use]
    pub fn deadline(&self) -> std::time::Duration {
        self.deadline
    }
}

/// The sinks this relay has, by kind.
#[derive(Default, Clone)]
pub struct Registry {
    sinks: BTreeMap<&'static str, Arc<dyn ErasedSink>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.sinks.keys()).finish()
    }
}

impl Registry {
    /// Adds a sink; a second one of the same kind replaces the first.
    pub fn add<S: Sink>(&mut self, sink: S) {
        self.sinks.insert(S::KIND, Arc::new(sink));
    }

    /// The kinds this relay has.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.sinks.keys().copied()
    }

    /// Checks a subscription's config against its sink.
    ///
    /// # Errors
    /// A sentence that names the field and the mend.
    pub fn bind(&self, kind: &str, config: &serde_json::Value) -> Result<Outlet, String> {
        let sink = self.sinks.get(kind).ok_or_else(|| {
            let known: Vec<_> = self.kinds().collect();
            format!("sink: this relay has no sink {kind:?}; it has {}", known.join(", "))
        })?;
        sink.clone().bind(config)
    }
}

/// Delivers nothing, and is never asked to: a subscription with this outlet may not be sent to.
struct Nowhere;

impl Sink for Nowhere {
    const KIND: &'static str = "none";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), String> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), _: &Delivery) -> Report {
        Outcome::Retry { reason: crate::verdict::Reason::LeaseLost, after: None }.into()
    }

    fn deadline(&self, (): &()) -> std::time::Duration {
        std::time::Duration::ZERO
    }
}

/// [`Sink`] without its associated types. No author of a sink reads this.
trait ErasedSink: Send + Sync {
    fn kind(&self) -> &'static str;
    fn bind(self: Arc<Self>, config: &serde_json::Value) -> Result<Outlet, String>;
    fn send<'a>(&'a self, target: &'a (dyn Any + Send + Sync), delivery: &'a Delivery)
    -> Pin<Box<dyn Future<Output = Report> + Send + 'a>>;
}

impl<S: Sink> ErasedSink for S {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn bind(self: Arc<Self>, config: &serde_json::Value) -> Result<Outlet, String> {
        let target = self.target(config)?;
        let destination = self.destination(&target).map(Arc::from);
        let deadline = self.deadline(&target);
        Ok(Outlet { sink: self, target: Arc::new(target), destination, deadline })
    }

    fn send<'a>(
        &'a self,
        target: &'a (dyn Any + Send + Sync),
        delivery: &'a Delivery,
    ) -> Pin<Box<dyn Future<Output = Report> + Send + 'a>> {
        let target = target.downcast_ref::<S::Target>().expect("an outlet holds a target of its own sink");
        Box::pin(Sink::send(self, target, delivery))
    }
}
