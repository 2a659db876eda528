//! The sinks a relay has, and how a subscription gets its outlet. No author of a sink needs to read this.

use std::{any::Any, collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;

use super::{Batch, CONNECTIONS, Configured, OPTIONAL, Report, Sink};
use crate::{
    config::{Connection, Settings},
    delivery::Delivery,
    verdict::{Outcome, Reason},
};

/// The connection a subscription gets that names none.
pub(crate) const UNNAMED: &str = "default";

/// A sink together with a checked target: all that `deliver` ever sees.
#[derive(Clone)]
pub struct Outlet {
    sink: Arc<dyn ErasedSink>,
    target: Arc<dyn Any + Send + Sync>,
    destination: Option<Arc<str>>,
    deadline: Duration,
    batch: Option<Batch>,
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
        Self { sink: Arc::new(Nowhere), target: Arc::new(()), destination: None, deadline: Duration::ZERO, batch: None }
    }

    /// One attempt at one delivery, or at several where [`Outlet::batch`] allows it: a report for each.
    pub async fn send(&self, deliveries: &[Delivery]) -> Vec<Report> {
        self.sink.send(&*self.target, deliveries).await
    }

    /// The body of a delivery, where its sink can show it; or why there is none.
    #[must_use]
    pub fn preview(&self, delivery: &Delivery) -> Option<Result<String, String>> {
        self.sink.preview(&*self.target, delivery)
    }

    /// Whether the destination can be reached, without leaving anything there.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub async fn check(&self) -> Result<(), String> {
        let limit = self.deadline.max(Duration::from_secs(1));
        match tokio::time::timeout(limit, self.sink.check(&*self.target)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {}", crate::duration::format(limit))),
        }
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
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether, and how, deliveries are put together.
    #[must_use]
    pub fn batch(&self) -> Option<Batch> {
        self.batch
    }
}

/// The sinks this relay has, by kind and connection.
#[derive(Default, Clone)]
pub struct Registry {
    sinks: BTreeMap<&'static str, BTreeMap<String, Arc<dyn ErasedSink>>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.sinks.iter().map(|(kind, connections)| (kind, connections.keys().collect::<Vec<_>>()))).finish()
    }
}

impl Registry {
    /// Adds a sink; a second one of the same kind replaces the first.
    pub fn add<S: Sink>(&mut self, sink: S) {
        self.insert(UNNAMED, Arc::new(sink));
    }

    /// Adds what an operator configured. Nothing is connected to yet.
    ///
    /// # Errors
    /// A sentence that names the section.
    pub fn open(&mut self, connections: &[Connection]) -> Result<(), String> {
        for connection in connections {
            let sink = connection.open().map_err(|problem| format!("{}: {problem}", connection.section()))?;
            self.insert(&connection.name, sink);
        }
        Ok(())
    }

    fn insert(&mut self, connection: &str, sink: Arc<dyn ErasedSink>) {
        self.sinks.entry(sink.kind()).or_default().insert(connection.to_owned(), sink);
    }

    /// The kinds this relay has.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.sinks.keys().copied()
    }

    /// Checks a subscription's config against its sink. The field `connection` picks one of several connections of a kind.
    ///
    /// # Errors
    /// A sentence that names the field and the mend.
    pub fn bind(&self, kind: &str, config: &Value) -> Result<Outlet, String> {
        let Some(connections) = self.sinks.get(kind) else {
            if CONNECTIONS.iter().any(|known| known.name == kind) {
                return Err(format!("sink: this relay has no connection to {kind}; its operator sets it below [sinks.{kind}]"));
            }
            if OPTIONAL.contains(&kind) {
                return Err(format!("sink: this relay was built without {kind}; its operator needs one built with the feature {kind}"));
            }
            let known: Vec<_> = self.kinds().collect();
            return Err(format!("sink: this relay has no sink {kind:?}; it has {}", known.join(", ")));
        };
        let mut config = std::borrow::Cow::Borrowed(config);
        let mut name = UNNAMED.to_owned();
        if config.get("connection").is_some()
            && CONNECTIONS.iter().any(|known| known.name == kind)
            && let Some(fields) = config.to_mut().as_object_mut()
            && let Some(chosen) = fields.remove("connection")
        {
            name = chosen.as_str().ok_or("config.connection: it must be the name of a connection, a string")?.to_owned();
        }
        let sink = connections.get(&name).ok_or_else(|| {
            let known: Vec<_> = connections.keys().map(String::as_str).collect();
            format!("config.connection: this relay has no connection {name:?} to {kind}; it has {}", known.join(", "))
        })?;
        sink.clone().bind(&config)
    }
}

/// A kind of sink that an operator configures.
pub(crate) struct Kind {
    /// What the operator calls it.
    pub(crate) name: &'static str,
    /// Reads its section: how to open it, when the section is there and good.
    pub(crate) read: fn(&mut Settings<'_>) -> Option<Opener>,
}

/// Makes a sink, given the name of its connection.
pub(crate) type Opener = Arc<dyn Fn(&str) -> Result<Arc<dyn ErasedSink>, String> + Send + Sync>;

impl Kind {
    pub(crate) const fn of<S: Configured>() -> Self {
        Self {
            name: S::KIND,
            read: |settings| {
                let config = S::read(settings)?;
                Some(Arc::new(move |connection: &str| {
                    S::open(config.clone(), connection).map(|sink| Arc::new(sink) as Arc<dyn ErasedSink>)
                }))
            },
        }
    }
}

/// Delivers nothing, and is never asked to: a subscription with this outlet may not be sent to.
struct Nowhere;

impl Sink for Nowhere {
    const KIND: &'static str = "none";
    type Target = ();

    fn target(&self, _: &Value) -> Result<(), String> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), _: &Delivery) -> Report {
        Outcome::Retry { reason: Reason::LeaseLost, after: None }.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::ZERO
    }
}

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Sink`] without its associated types.
pub(crate) trait ErasedSink: Send + Sync {
    fn kind(&self) -> &'static str;
    fn bind(self: Arc<Self>, config: &Value) -> Result<Outlet, String>;
    fn send<'a>(&'a self, target: &'a (dyn Any + Send + Sync), deliveries: &'a [Delivery]) -> Boxed<'a, Vec<Report>>;
    fn check<'a>(&'a self, target: &'a (dyn Any + Send + Sync)) -> Boxed<'a, Result<(), String>>;
    fn preview(&self, target: &(dyn Any + Send + Sync), delivery: &Delivery) -> Option<Result<String, String>>;
}

impl<S: Sink> ErasedSink for S {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn bind(self: Arc<Self>, config: &Value) -> Result<Outlet, String> {
        let target = self.target(config)?;
        let destination = self.destination(&target).map(Arc::from);
        let deadline = self.deadline(&target);
        let batch = self.batch(&target);
        Ok(Outlet { sink: self, target: Arc::new(target), destination, deadline, batch })
    }

    fn send<'a>(&'a self, target: &'a (dyn Any + Send + Sync), deliveries: &'a [Delivery]) -> Boxed<'a, Vec<Report>> {
        let target = own::<S>(target);
        match deliveries {
            [one] if self.batch(target).is_none() => Box::pin(async move { vec![Sink::send(self, target, one).await] }),
            several => Box::pin(Sink::send_batch(self, target, several)),
        }
    }

    fn check<'a>(&'a self, target: &'a (dyn Any + Send + Sync)) -> Boxed<'a, Result<(), String>> {
        Box::pin(Sink::check(self, own::<S>(target)))
    }

    fn preview(&self, target: &(dyn Any + Send + Sync), delivery: &Delivery) -> Option<Result<String, String>> {
        Sink::preview(self, own::<S>(target), delivery)
    }
}

fn own<S: Sink>(target: &(dyn Any + Send + Sync)) -> &S::Target {
    target.downcast_ref::<S::Target>().expect("an outlet holds a target of its own sink")
}
