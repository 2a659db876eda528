//! The sinks of a relay by kind and connection, and how a subscription gets its outlet. Authors of sinks need
//! not read this.

use std::{any::Any, collections::BTreeMap, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    Batch, Configured, Layer, Next, Outgoing, Preview, Problem, Report, Settings, Sink,
    layer::{ErasedLayer, Layers},
};
use crate::delivery::{Outcome, Reason};

/// Name of the connection for subscriptions that name none.
pub const UNNAMED: &str = "default";

/// A sink together with a checked target: all that `deliver` sees of a destination.
#[derive(Clone)]
pub struct Outlet {
    sink: Arc<dyn ErasedSink>,
    target: Arc<dyn Any + Send + Sync>,
    destination: Option<Arc<str>>,
    deadline: Duration,
    batch: Option<Batch>,
    settles: bool,
    /// The outermost first.
    layers: Arc<[Arc<dyn ErasedLayer>]>,
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlet")
            .field("sink", &self.sink.kind())
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

impl Outlet {
    /// An outlet that sends nothing, in place of an invalid target.
    #[must_use]
    pub fn none() -> Self {
        Self {
            sink: Arc::new(Nowhere),
            target: Arc::new(()),
            destination: None,
            deadline: Duration::ZERO,
            batch: None,
            settles: false,
            layers: Arc::default(),
        }
    }

    /// Makes one attempt for one delivery, or for several if [`Outlet::batch`] allows it. Returns a report
    /// for each.
    pub async fn send(&self, deliveries: &[Outgoing]) -> Vec<Report> {
        Next { layers: &self.layers, outlet: self }.send(deliveries).await
    }

    /// Makes the attempt without the layers around the sink.
    pub(super) async fn send_bare(&self, deliveries: &[Outgoing]) -> Vec<Report> {
        self.sink.send(&*self.target, deliveries).await
    }

    /// The body that would be sent, or why it cannot be made; none if the sink cannot show it.
    #[must_use]
    pub fn preview(&self, delivery: &Outgoing) -> Option<Result<Preview, Problem>> {
        self.sink.preview(&*self.target, delivery)
    }

    /// Checks that the destination can be reached, without leaving anything there.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self) -> Result<(), Problem> {
        let limit = self.deadline.max(Duration::from_secs(1));
        match tokio::time::timeout(limit, self.sink.check(&*self.target)).await {
            Ok(result) => result,
            Err(_) => Err(format!("no answer within {}", crate::delivery::duration::format(limit)).into()),
        }
    }

    /// Kind of the sink.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.sink.kind()
    }

    /// Name of its breaker, which other outlets may share.
    #[must_use]
    pub fn destination(&self) -> Option<&Arc<str>> {
        self.destination.as_ref()
    }

    /// Deadline of one attempt.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Whether its sink records itself that a delivery is settled.
    #[must_use]
    pub fn settles(&self) -> bool {
        self.settles
    }

    /// Batching of deliveries, if the sink takes several at once.
    #[must_use]
    pub fn batch(&self) -> Option<Batch> {
        self.batch
    }
}

/// The sinks of a relay, by kind and connection.
#[derive(Default, Clone)]
pub struct Registry {
    sinks: BTreeMap<&'static str, BTreeMap<String, Arc<dyn ErasedSink>>>,
    layers: Layers,
    /// Kinds that an operator configures, for error messages.
    configured: &'static [Kind],
    /// Kinds that need a feature of the build, for error messages.
    optional: &'static [&'static str],
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(
                self.sinks.iter().map(|(kind, connections)| (kind, connections.keys().collect::<Vec<_>>())),
            )
            .finish()
    }
}

impl Registry {
    /// An empty registry. `configured` are the kinds that an operator configures, `optional` those that need
    /// a feature of the build; error messages use both.
    #[must_use]
    pub fn new(configured: &'static [Kind], optional: &'static [&'static str]) -> Self {
        Self { sinks: BTreeMap::new(), layers: Layers::default(), configured, optional }
    }

    /// Adds a sink; a second one of the same kind replaces the first.
    pub fn add<S: Sink>(&mut self, sink: S) {
        self.insert(UNNAMED, Arc::new(sink));
    }

    /// Wraps all sinks, or those of one kind, inside of the layers that were added before.
    pub fn layer(&mut self, kind: Option<&str>, layer: impl Layer) {
        self.layers.add(kind, layer);
    }

    /// The first kind that was named for a layer and is not present.
    #[must_use]
    pub fn layer_without_sink(&self) -> Option<&str> {
        self.layers.kinds().find(|kind| !self.sinks.contains_key(kind))
    }

    /// Adds configured sinks. Does not connect.
    ///
    /// # Errors
    /// A message that names the section.
    pub fn open(&mut self, connections: &[Connection]) -> Result<(), Problem> {
        for connection in connections {
            let open = (connection.opener)(&connection.name);
            let sink = open.map_err(|problem| {
                format!("{}: {problem}", Connection::section(connection.kind, &connection.name))
            })?;
            self.insert(&connection.name, sink);
        }
        Ok(())
    }

    fn insert(&mut self, connection: &str, sink: Arc<dyn ErasedSink>) {
        self.sinks.entry(sink.kind()).or_default().insert(connection.to_owned(), sink);
    }

    /// All kinds of sink that are present.
    pub fn kinds(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.sinks.keys().copied()
    }

    /// Whether no build and no configuration of this program has such a sink: it belongs to another program.
    #[must_use]
    pub fn is_foreign(&self, kind: &str) -> bool {
        !self.sinks.contains_key(kind)
            && !self.optional.contains(&kind)
            && !self.configured.iter().any(|known| known.name == kind)
    }

    /// Checks a subscription's config with its sink. The field `connection` selects one of several
    /// connections of a kind.
    ///
    /// # Errors
    /// A message that names the field and what to write instead.
    pub fn bind(&self, kind: &str, config: &Value) -> Result<Outlet, Problem> {
        let Some(connections) = self.sinks.get(kind) else {
            if self.configured.iter().any(|known| known.name == kind) {
                return Err(format!(
                    "sink: this relay has no connection to {kind}; its operator must configure [sinks.{kind}]"
                )
                .into());
            }
            if self.optional.contains(&kind) {
                return Err(format!(
                    "sink: this relay was built without {kind}; \
                     its operator must build it with the feature {kind}"
                )
                .into());
            }
            let known: Vec<_> = self.kinds().collect();
            return Err(format!("sink: this relay has no sink {kind:?}; it has {}", known.join(", ")).into());
        };
        let mut config = std::borrow::Cow::Borrowed(config);
        let mut name = UNNAMED.to_owned();
        if config.get("connection").is_some()
            && self.configured.iter().any(|known| known.name == kind)
            && let Some(fields) = config.to_mut().as_object_mut()
            && let Some(chosen) = fields.remove("connection")
        {
            name = chosen.as_str().ok_or("config.connection: must be the name of a connection")?.to_owned();
        }
        let sink = connections.get(&name).ok_or_else(|| {
            let known: Vec<_> = connections.keys().map(String::as_str).collect();
            format!(
                "config.connection: this relay has no connection {name:?} to {kind}; it has {}",
                known.join(", ")
            )
        })?;
        Ok(Outlet { layers: self.layers.of(kind), ..sink.clone().bind(&config)? })
    }
}

/// A kind of sink that an operator configures: an entry of the table that the reader of the configuration
/// gets.
pub struct Kind {
    /// Name of the kind.
    pub name: &'static str,
    read: fn(&mut Settings<'_>, &str) -> Option<Connection>,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kind").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Kind {
    /// The entry for a sink.
    #[must_use]
    pub const fn of<S: Configured>() -> Self {
        Self { name: S::KIND, read: |settings, name| Some(Connection::new::<S>(S::read(settings)?, name)) }
    }

    /// Reads a section. Returns the connection if the section exists and is valid.
    pub fn read(&self, settings: &mut Settings<'_>, name: &str) -> Option<Connection> {
        (self.read)(settings, name)
    }
}

/// Makes a sink from the name of its connection.
type Opener = Arc<dyn Fn(&str) -> Result<Arc<dyn ErasedSink>, Problem> + Send + Sync>;

/// A checked configuration of a connection. The sink connects at the first attempt.
#[derive(Clone)]
pub struct Connection {
    /// Kind of sink.
    pub kind: &'static str,
    /// Name of the connection among those of its kind; `default` for the unnamed one.
    pub name: String,
    opener: Opener,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("kind", &self.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Connection {
    /// A connection with this configuration. Subscriptions select it with `config.connection`.
    pub fn new<S: Configured>(config: S::Config, name: &str) -> Self {
        let opener: Opener = Arc::new(move |connection| {
            S::open(config.clone(), connection).map(|sink| Arc::new(sink) as Arc<dyn ErasedSink>)
        });
        Self { kind: S::KIND, name: name.to_owned(), opener }
    }

    /// Section of the configuration: `sinks.kafka` or `sinks.kafka.connections.NAME`.
    #[must_use]
    pub fn section(kind: &str, name: &str) -> String {
        if name == UNNAMED { format!("sinks.{kind}") } else { format!("sinks.{kind}.connections.{name}") }
    }
}

/// Placeholder sink. Never called: a subscription with this outlet is not sent to.
struct Nowhere;

impl Sink for Nowhere {
    const KIND: &'static str = "none";
    type Target = ();

    fn target(&self, _: &Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), _: &Outgoing) -> Report {
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
    fn bind(self: Arc<Self>, config: &Value) -> Result<Outlet, Problem>;
    fn send<'a>(
        &'a self,
        target: &'a (dyn Any + Send + Sync),
        deliveries: &'a [Outgoing],
    ) -> Boxed<'a, Vec<Report>>;
    fn check<'a>(&'a self, target: &'a (dyn Any + Send + Sync)) -> Boxed<'a, Result<(), Problem>>;
    fn preview(
        &self,
        target: &(dyn Any + Send + Sync),
        delivery: &Outgoing,
    ) -> Option<Result<Preview, Problem>>;
}

impl<S: Sink> ErasedSink for S {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn bind(self: Arc<Self>, config: &Value) -> Result<Outlet, Problem> {
        let target = self.target(config)?;
        let destination = self.destination(&target).map(Arc::from);
        let deadline = self.deadline(&target);
        let batch = self.batch(&target);
        Ok(Outlet {
            sink: self,
            target: Arc::new(target),
            destination,
            deadline,
            batch,
            settles: S::SETTLES,
            layers: Arc::default(),
        })
    }

    fn send<'a>(
        &'a self,
        target: &'a (dyn Any + Send + Sync),
        deliveries: &'a [Outgoing],
    ) -> Boxed<'a, Vec<Report>> {
        let target = own::<S>(target);
        match deliveries {
            [one] if self.batch(target).is_none() => {
                Box::pin(async move { vec![Sink::send(self, target, one).await] })
            }
            several => Box::pin(Sink::send_batch(self, target, several)),
        }
    }

    fn check<'a>(&'a self, target: &'a (dyn Any + Send + Sync)) -> Boxed<'a, Result<(), Problem>> {
        Box::pin(Sink::check(self, own::<S>(target)))
    }

    fn preview(
        &self,
        target: &(dyn Any + Send + Sync),
        delivery: &Outgoing,
    ) -> Option<Result<Preview, Problem>> {
        Sink::preview(self, own::<S>(target), delivery)
    }
}

fn own<S: Sink>(target: &(dyn Any + Send + Sync)) -> &S::Target {
    target.downcast_ref::<S::Target>().expect("an outlet holds a target of its own sink")
}
