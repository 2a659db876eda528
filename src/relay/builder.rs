//! Collects what a relay needs, and checks the database before it starts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use super::{
    Drained, Error, Health, Relay,
    clock::Clock,
    news::News,
    parts::{Base, Parts, ReloadAsked},
    shared::Shared,
};
use super::{Settings, telemetry::Telemetry, watch::Failed};
use crate::{
    event::Event,
    sink::{
        Connection, Layer, Problem, Registry, Sink,
        servers::Servers,
        sqlstate::{Class, class_of},
    },
    sinks::{
        self,
        function::Functions,
        handler::{HandlerError, Handlers},
        live::Live,
    },
    store::{self, ConnectionSettings, Store, schema},
};

/// Longest look at captures when a relay starts; a thousand captured tables take a third of a second.
const LOOK_AT_CAPTURES: Duration = Duration::from_secs(3);

/// Collects what a relay needs.
#[derive(Debug)]
pub struct Builder {
    servers: Servers,
    listen: Option<Servers>,
    settings: Settings,
    pool_size: u32,
    function_pool_size: u32,
    pooler: bool,
    allow_superuser: bool,
    sinks: Registry,
    handlers: Handlers,
    /// Names and topics of the handlers.
    declared: Vec<(String, Vec<String>)>,
    telemetry: Arc<Telemetry>,
    shared: Option<Arc<Shared>>,
}

impl Builder {
    pub(super) fn new(servers: Servers) -> Self {
        Self {
            servers,
            listen: None,
            settings: Settings::default(),
            pool_size: 4,
            function_pool_size: sinks::FUNCTION_CONNECTIONS,
            pooler: false,
            allow_superuser: false,
            sinks: sinks::registry(),
            handlers: Handlers::default(),
            declared: Vec::new(),
            telemetry: Telemetry::new(),
            shared: None,
        }
    }

    /// Settings of the relay, as in `[relay]`.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = settings;
        self
    }

    /// A direct connection for LISTEN, if the pool goes through a pooler: options of the driver, or
    /// [`Servers`].
    #[must_use]
    pub fn listen(mut self, servers: impl Into<Servers>) -> Self {
        self.listen = Some(servers.into());
        self
    }

    /// Set when the pool goes through a transaction pooler such as PgBouncer. Without [`Builder::listen`] the
    /// relay then only polls.
    #[must_use]
    pub fn pooler(mut self, pooler: bool) -> Self {
        self.pooler = pooler;
        self
    }

    /// Whether to start even if the login is a superuser.
    #[must_use]
    pub fn allow_superuser(mut self, allow: bool) -> Self {
        self.allow_superuser = allow;
        self
    }

    /// Connections for reports and reloads. Routing, claiming, settling, renewing and the listener keep their
    /// own connections beside them.
    #[must_use]
    pub fn pool_size(mut self, size: u32) -> Self {
        self.pool_size = size.max(1);
        self
    }

    /// Most connections for SQL functions of subscriptions, which are opened on demand. 32 by default.
    #[must_use]
    pub fn function_pool_size(mut self, size: u32) -> Self {
        self.function_pool_size = size.max(1);
        self
    }

    /// Adds a sink.
    #[must_use]
    pub fn sink(mut self, sink: impl Sink) -> Self {
        self.sinks.add(sink);
        self
    }

    /// Wraps the attempts of all sinks, also of handlers. Layers that were added before are further outside.
    #[must_use]
    pub fn layer(mut self, layer: impl Layer) -> Self {
        self.sinks.layer(None, layer);
        self
    }

    /// Wraps the attempts of the sinks of one kind, such as `webhook`. It is an error of [`Builder::build`]
    /// if the relay has no such sink.
    #[must_use]
    pub fn layer_on(mut self, kind: &str, layer: impl Layer) -> Self {
        self.sinks.layer(Some(kind), layer);
        self
    }

    /// Adds a function of this program, under a subscription of the same name that the relay creates when it
    /// starts. It gets every event of these topics at least once. An error is retried as the subscription's
    /// retry policy says; [`Rejected`](crate::sinks::handler::Rejected) is not retried. Other relays of the
    /// same database leave its events to this program, also while it does not run; `outbox.unsubscribe` ends
    /// that.
    #[must_use]
    pub fn handler<F, A, E>(
        mut self,
        name: &str,
        topics: impl IntoIterator<Item = impl Into<String>>,
        handler: F,
    ) -> Self
    where
        F: Fn(Arc<Event>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError>,
    {
        self.handlers.add(name, handler);
        self.declared.push((name.to_owned(), topics.into_iter().map(Into::into).collect()));
        self
    }

    /// Like [`Builder::handler`], with the payload deserialized. An event whose payload does not fit the type
    /// becomes a dead letter.
    #[must_use]
    pub fn typed_handler<T, F, A, E>(
        mut self,
        name: &str,
        topics: impl IntoIterator<Item = impl Into<String>>,
        handler: F,
    ) -> Self
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Arc<Event>, T) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError>,
    {
        self.handlers.add_typed(name, handler);
        self.declared.push((name.to_owned(), topics.into_iter().map(Into::into).collect()));
        self
    }

    /// Adds connections as configured in `[sinks.<kind>]`. Does not connect yet.
    ///
    /// # Errors
    /// The section, and what is wrong with it, as a sentence.
    pub fn connections(mut self, connections: &[Connection]) -> Result<Self, Problem> {
        self.sinks.open(connections)?;
        Ok(self)
    }

    /// Metrics and signals to use instead of new ones.
    #[must_use]
    pub fn telemetry(mut self, telemetry: Arc<Telemetry>) -> Self {
        self.telemetry = telemetry;
        self
    }

    /// Limits that this relay has together with others of the process.
    #[cfg(feature = "cli")]
    #[must_use]
    pub(crate) fn shared(mut self, shared: Arc<Shared>) -> Self {
        self.shared = Some(shared);
        self
    }

    /// Connects and checks the database.
    ///
    /// # Errors
    /// When the database cannot be reached, is not migrated, is read-only, or the login is a superuser. Not
    /// when the outbox belongs to another database: the relay then waits until it is adopted.
    pub async fn build(mut self) -> Result<Relay, Error> {
        self.check_schema().await?;
        let settings = ConnectionSettings {
            servers: self.servers.clone(),
            relay: self.settings.name.clone(),
            environment: self.settings.environment.clone(),
            pool_size: self.pool_size,
            function_pool_size: self.function_pool_size,
            pooler: self.pooler,
            allow_superuser: self.allow_superuser,
        };
        let functions = Functions::new(
            settings.servers.for_writing(),
            &settings.relay,
            settings.pooler,
            settings.function_pool_size,
        );
        sinks::add_built_in(&mut self.sinks, functions);
        if !self.declared.is_empty() {
            self.sinks.add(self.handlers);
        }
        if let Some(kind) = self.sinks.layer_without_sink() {
            return Err(Error::LayerWithoutSink { kind: kind.to_owned() });
        }
        self.telemetry.sinks_known(self.sinks.kinds().filter(|kind| *kind != Live::KIND));
        let sinks: Vec<_> = self.sinks.kinds().collect();
        let store = Store::connect(settings).await.map_err(Error::Start)?;
        if !store.is_tripped() {
            declare(&store, &sinks, &self.declared).await?;
        }
        // Through a transaction pooler LISTEN reports success and never delivers, and a session lock would
        // stay with a connection that is not ours.
        let listen = self
            .listen
            .or_else(|| (!self.pooler).then_some(self.servers))
            .map(|servers| store.listener_servers(&servers));
        let base = Arc::new(Base {
            store,
            settings: self.settings,
            telemetry: self.telemetry,
            clock: Clock::default(),
            index: ArcSwap::default(),
            reload: ReloadAsked::default(),
            news: News::default(),
            shared: self.shared,
        });
        let parts = Parts::new(base, self.sinks);
        let health = Health {
            base: parts.base.clone(),
            sending: Arc::new(ArcSwap::new(parts.sending.clone())),
            draining: Arc::default(),
            failed: Failed::default(),
            started: Instant::now(),
        };
        Ok(Relay { parts, listen, sinks, declared: self.declared, health })
    }

    /// Refuses a schema that is older or newer than this binary, before anything is written.
    async fn check_schema(&self) -> Result<(), Error> {
        use sqlx::Connection as _;
        let checking = async {
            let connecting = self.servers.for_writing();
            let mut connection = connecting.connect(self.pooler).await.map_err(schema::Error::connect)?;
            // Within a transaction a pooler gives all steps of a statement to one session.
            let mut transaction = connection.begin().await.map_err(schema::Error::connect)?;
            let pending = schema::pending(&mut transaction).await?;
            if pending.is_empty() {
                // Best effort: a relay works without knowing about captures.
                let problems = store::capture_problems(&mut transaction);
                let problems = tokio::time::timeout(LOOK_AT_CAPTURES, problems).await;
                for (table, problem) in problems.map(Result::unwrap_or_default).unwrap_or_default() {
                    tracing::warn!(table, problem, "a captured table has a problem; see outbox.captures");
                }
            }
            // Best effort: everything was read.
            drop(transaction);
            let _ = connection.close().await;
            Ok::<_, schema::Error>(pending)
        };
        match tokio::time::timeout(Duration::from_secs(10), checking).await {
            Ok(Ok(pending)) if pending.is_empty() => Ok(()),
            Ok(Ok(pending)) => Err(Error::Outdated { missing: pending.join(", ") }),
            Ok(Err(schema::Error::Connect(error))) if class_of(&error) == Some(Class::Busy) => {
                let (pool, functions) = (self.pool_size, self.function_pool_size);
                Err(Error::Start(store::crowded("connecting to the database", error, pool, functions)))
            }
            Ok(Err(error)) => Err(Error::Schema(error)),
            Err(_) => Err(Error::Silent),
        }
    }

    /// Calls [`Builder::build`] and [`Relay::run`].
    ///
    /// # Errors
    /// Those of both.
    pub async fn run(self, shutdown: CancellationToken) -> Result<Drained, Error> {
        self.build().await?.run(shutdown).await
    }

    /// Like [`Builder::run`], until a future ends, such as `tokio::signal::ctrl_c()`. Then the relay drains.
    ///
    /// # Errors
    /// Those of [`Builder::run`].
    pub async fn run_until(self, stop: impl Future) -> Result<Drained, Error> {
        let shutdown = CancellationToken::new();
        let running = self.run(shutdown.clone());
        tokio::pin!(running);
        tokio::select! {
            ended = &mut running => return ended,
            _ = stop => shutdown.cancel(),
        }
        running.await
    }
}

/// Lets subscriptions name the sinks of this program, and creates those of handlers or updates their topics.
pub(super) async fn declare(
    store: &Store,
    sinks: &[&str],
    handlers: &[(String, Vec<String>)],
) -> Result<(), Error> {
    store.declare_sinks(sinks).await.map_err(Error::Start)?;
    for (name, topics) in handlers {
        store.declare_handler(name, topics).await.map_err(Error::Start)?;
    }
    Ok(())
}
