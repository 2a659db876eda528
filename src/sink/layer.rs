//! Layers around sinks, for programs that embed a relay: they log, measure, limit, validate, alter or refuse
//! what is sent. In the manner of tower's `Layer`, but not that trait: a sink has a kind, targets and
//! batches, which a layer over a type would have to repeat, and sinks are wrapped here after they were
//! erased.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use super::{Outgoing, Outlet, Report};
use crate::delivery::{Outcome, Reason};

/// Wraps the attempts of sinks. Added with [`RelayBuilder::layer`](crate::RelayBuilder::layer); the one that
/// was added first is the outermost.
///
/// ```
/// use pgoutbox::{Layer, Next, Outcome, Outgoing, Reason, Report};
///
/// /// Refuses payloads that are too large for every destination.
/// struct AtMost(usize);
///
/// impl Layer for AtMost {
///     async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
///         let refuse = |one: &Outgoing| {
///             let refused = Outcome::Rejected { reason: Reason::BodyTooLarge };
///             (one.event.payload.len() > self.0).then(|| refused.into())
///         };
///         next.send_unless(deliveries, refuse).await
///     }
/// }
/// ```
pub trait Layer: Send + Sync + 'static {
    /// Makes one attempt for these deliveries of one subscription, in the order of the log: one, or several
    /// if the sink takes batches. Returns a report for each, in the same order.
    ///
    /// Calls [`Next::send`] at most once, with the deliveries as they are or with altered copies, or not at
    /// all to refuse them. Nothing is retried here: the relay does that. The sink's deadline
    /// ([`Next::deadline`]) is for the attempt with all layers; it is enforced by dropping the future. A
    /// panic is a failed attempt, as in a sink. [`Report::settled`] stays as the sink set it.
    ///
    /// What `pgoutbox check` and trials of subscriptions do does not go through layers.
    fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> impl Future<Output = Vec<Report>> + Send;
}

type Sending<'a> = Pin<Box<dyn Future<Output = Vec<Report>> + Send + 'a>>;

/// [`Layer`] without its type.
pub(super) trait ErasedLayer: Send + Sync {
    fn send<'a>(&'a self, deliveries: &'a [Outgoing], next: Next<'a>) -> Sending<'a>;
}

impl<L: Layer> ErasedLayer for L {
    fn send<'a>(&'a self, deliveries: &'a [Outgoing], next: Next<'a>) -> Sending<'a> {
        Box::pin(Layer::send(self, deliveries, next))
    }
}

/// The layers of a relay, the outermost first.
#[derive(Default, Clone)]
pub(super) struct Layers {
    all: Vec<Around>,
}

/// A layer, and the kind of sink that it is for; none for all.
#[derive(Clone)]
struct Around {
    kind: Option<Arc<str>>,
    layer: Arc<dyn ErasedLayer>,
}

impl Layers {
    /// Adds one inside of the others, for one kind of sink or for all.
    pub(super) fn add(&mut self, kind: Option<&str>, layer: impl Layer) {
        self.all.push(Around { kind: kind.map(Arc::from), layer: Arc::new(layer) });
    }

    /// Those around a kind of sink.
    pub(super) fn of(&self, kind: &str) -> Arc<[Arc<dyn ErasedLayer>]> {
        let is_for = |one: &&Around| one.kind.as_deref().is_none_or(|named| named == kind);
        self.all.iter().filter(is_for).map(|one| one.layer.clone()).collect()
    }

    /// The kinds that were named.
    pub(super) fn kinds(&self) -> impl Iterator<Item = &str> {
        self.all.iter().filter_map(|one| one.kind.as_deref())
    }
}

/// The layers that are further inside, and the sink.
pub struct Next<'a> {
    pub(super) layers: &'a [Arc<dyn ErasedLayer>],
    pub(super) outlet: &'a Outlet,
}

impl std::fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Next")
            .field("outlet", self.outlet)
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

impl Next<'_> {
    /// Kind of the sink, such as `webhook`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.outlet.kind()
    }

    /// Name of the destination's breaker, such as `https://example.com:443`; none for a sink without.
    #[must_use]
    pub fn destination(&self) -> Option<&str> {
        self.outlet.destination().map(|name| &**name)
    }

    /// Deadline of the attempt with all layers; the relay makes it 60 s at most.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.outlet.deadline()
    }

    /// Makes the attempt. Returns a report for each delivery.
    pub async fn send(self, deliveries: &[Outgoing]) -> Vec<Report> {
        match self.layers {
            [] => self.outlet.send_bare(deliveries).await,
            [layer, layers @ ..] => layer.send(deliveries, Next { layers, outlet: self.outlet }).await,
        }
    }

    /// Makes the attempt for those that are not refused; the others get the report of their refusal.
    pub async fn send_unless(
        self,
        deliveries: &[Outgoing],
        refuse: impl Fn(&Outgoing) -> Option<Report> + Send,
    ) -> Vec<Report> {
        let refused: Vec<Option<Report>> = deliveries.iter().map(refuse).collect();
        if refused.iter().all(Option::is_none) {
            return self.send(deliveries).await;
        }
        let rest: Vec<Outgoing> = deliveries
            .iter()
            .zip(&refused)
            .filter(|(_, refused)| refused.is_none())
            .map(|(one, _)| one.clone())
            .collect();
        let mut sent = if rest.is_empty() { Vec::new() } else { self.send(&rest).await }.into_iter();
        // A report too few or too many stays one: the relay takes the attempt for failed.
        let mut reports: Vec<Report> =
            refused.into_iter().filter_map(|refused| refused.or_else(|| sent.next())).collect();
        reports.extend(sent);
        reports
    }
}

/// A layer that ends attempts which take longer. The destination may have what was sent, so its reports are
/// ambiguous, with the reason `timeout`, and the events are sent again.
#[derive(Debug, Clone, Copy)]
pub struct Timeout(Duration);

impl Timeout {
    /// Ends attempts after this time. One that is above the sink's own deadline changes nothing.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self(limit)
    }
}

impl Layer for Timeout {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        tokio::time::timeout(self.0, next.send(deliveries)).await.unwrap_or_else(|_| {
            let limit = crate::delivery::duration::format(self.0);
            let report = Report::from(Outcome::Retry { reason: Reason::Timeout, after: None })
                .ambiguous()
                .with_answer(format!("no report within {limit}"));
            vec![report; deliveries.len()]
        })
    }
}
