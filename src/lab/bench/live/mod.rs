//! Live clients: what serves them in both arms, and the rows about them.

mod crowd;
pub(super) mod fanout;
pub(super) mod idle;
pub(super) mod latency;
mod listener;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Context;
use axum::{
    Router,
    extract::{
        State, WebSocketUpgrade,
        ws::{Message, Utf8Bytes, WebSocket},
    },
    response::Response,
    routing::get,
};
use futures_util::SinkExt as _;
use tokio::{net::TcpListener, sync::broadcast, task::JoinSet};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    running::{Noop, Permits, Running},
    stage::Database,
};
use crate::{
    http::{self, Readiness, Server},
    live::{Gateway, Settings, Sources},
    relay::{self, telemetry::Telemetry},
    store::ConnectionSettings,
};

/// Batches that wait for a client of [`Memory`].
const WAITING: usize = 16_384;

/// Messages that are sent together.
type Messages = Arc<Vec<Utf8Bytes>>;

/// A relay of this process and the gateway beside it, as in `pgoutbox run`.
#[derive(Debug)]
struct Serving {
    address: SocketAddr,
    relay: Running,
    gateway: Gateway,
    stop: CancellationToken,
    // Aborted when this is dropped.
    tasks: JoinSet<std::io::Result<()>>,
}

#[derive(Debug, Clone)]
struct Ready;

impl Readiness for Ready {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn state(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

impl Serving {
    async fn start(database: &Database) -> anyhow::Result<Self> {
        let relay = Running::start(database, Permits::standard(), Noop::default()).await?;
        let connection = ConnectionSettings {
            servers: database.relay_options.clone().into(),
            relay: "bench".to_owned(),
            environment: relay::Settings::default().environment,
            pool_size: 1,
            function_pool_size: 0,
            pooler: false,
            allow_superuser: false,
        };
        let telemetry = Telemetry::new();
        let listen = Some(database.relay_options.clone().into());
        let sources =
            Sources { connection, listen, news: Some(relay.news.clone()), telemetry: telemetry.clone() };
        // All clients have one address here.
        let settings = Settings { max_per_address: usize::MAX, ..Settings::default() };
        let gateway = Gateway::start(sources, settings);
        let listener = listener().await?;
        let (address, stop) = (listener.local_addr()?, CancellationToken::new());
        let server = Server {
            settings: http::Settings::default(),
            readiness: Ready,
            telemetry,
            draining: CancellationToken::new(),
            room: Some(gateway.room().clone()),
            clients: TaskTracker::new(),
            operators: None,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(http::serve(listener, server, stop.clone()));
        Ok(Self { address, relay, gateway, stop, tasks })
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        self.gateway.drain();
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
        self.gateway.close().await;
        self.relay.stop().await
    }
}

/// The floor: sends what it is given to all clients, from memory, with the same library.
#[derive(Debug)]
struct Memory {
    address: SocketAddr,
    messages: broadcast::Sender<Messages>,
    // Aborted when this is dropped.
    _tasks: JoinSet<std::io::Result<()>>,
}

impl Memory {
    async fn start() -> anyhow::Result<Self> {
        let listener = listener().await?;
        let (address, messages) = (listener.local_addr()?, broadcast::Sender::new(WAITING));
        let router = Router::new().route("/v1/ws", get(copy)).with_state(messages.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, messages, _tasks: tasks })
    }
}

async fn listener() -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening a port")
}

async fn copy(State(messages): State<broadcast::Sender<Messages>>, upgrade: WebSocketUpgrade) -> Response {
    // Before the client knows that it is connected.
    let messages = messages.subscribe();
    upgrade.on_upgrade(|socket| async {
        // An error means that the client has left.
        let _ = copy_to(socket, messages).await;
    })
}

async fn copy_to(
    mut socket: WebSocket,
    mut messages: broadcast::Receiver<Messages>,
) -> Result<(), axum::Error> {
    while let Ok(some) = messages.recv().await {
        let mut next = Some(some);
        while let Some(some) = next {
            for text in some.iter() {
                socket.feed(Message::Text(text.clone())).await?;
            }
            next = messages.try_recv().ok();
        }
        socket.flush().await?;
    }
    Ok(())
}
