//! A gateway in this process, and clients of it over real sockets.

use std::{net::SocketAddr, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use pgoutbox::{
    http::{self, Readiness, Server},
    live::{Gateway, Settings, Sources},
    relay::telemetry::Telemetry,
    store::ConnectionSettings,
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Database;

/// Deadline of every wait.
const DEADLINE: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct Ready;

impl Readiness for Ready {
    async fn ready(&self) -> Result<(), String> {
        Ok(())
    }

    fn state(&self) -> Value {
        json!({})
    }
}

/// A gateway that serves HTTP.
#[derive(Debug)]
pub(crate) struct LiveBox {
    pub(crate) address: SocketAddr,
    pub(crate) gateway: Gateway,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl LiveBox {
    /// Starts a gateway. It polls slowly, so that a missed notification is noticed.
    pub(crate) async fn start(database: &Database) -> Self {
        let poll = Duration::from_secs(20);
        Self::start_with(database, Settings { poll, ..Settings::default() }, http::Settings::default()).await
    }

    pub(crate) async fn start_with(
        database: &Database,
        settings: Settings,
        http_settings: http::Settings,
    ) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), database, settings, http_settings).await
    }

    /// Starts a gateway on this address.
    pub(crate) async fn start_at(
        address: SocketAddr,
        database: &Database,
        settings: Settings,
        http_settings: http::Settings,
    ) -> Self {
        let connection = ConnectionSettings {
            options: database.relay_options.clone(),
            relay: format!("gateway-{}", uuid::Uuid::new_v4().simple()),
            environment: pgoutbox::RelaySettings::default().environment,
            pool_size: 1,
            function_pool_size: 0,
            pooler: false,
            allow_superuser: false,
        };
        let telemetry = Telemetry::new();
        let listen = Some(database.relay_options.clone());
        let sources = Sources { connection, listen, news: None, telemetry: telemetry.clone() };
        let gateway = Gateway::start(sources, settings);
        let listener = TcpListener::bind(address).await.unwrap();
        let (address, shutdown, tasks) =
            (listener.local_addr().unwrap(), CancellationToken::new(), TaskTracker::new());
        let server = Server {
            settings: http_settings,
            readiness: Ready,
            telemetry,
            draining: CancellationToken::new(),
            room: Some(gateway.room().clone()),
            clients: TaskTracker::new(),
        };
        tasks.spawn(http::serve(listener, server, shutdown.clone()));
        tasks.close();
        Self { address, gateway, shutdown, tasks }
    }

    pub(crate) async fn stop(self) {
        self.gateway.drain();
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.tasks.wait()).await.unwrap();
        self.gateway.close().await;
    }

    /// A client by WebSocket.
    pub(crate) async fn connect(&self) -> Client {
        Client::connect(self.address).await
    }

    /// A stream of server-sent events; `query` follows the `?`.
    pub(crate) async fn stream(&self, query: &str, headers: &[(&str, &str)]) -> Stream {
        let mut request = reqwest::Client::builder()
            .no_proxy()
            .build()
            .unwrap()
            .get(format!("http://{}/v1/stream?{query}", self.address));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = tokio::time::timeout(DEADLINE, request.send()).await.unwrap().unwrap();
        Stream { response, read: String::new() }
    }
}

/// A client by WebSocket.
#[derive(Debug)]
pub(crate) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let url = format!("ws://{address}/v1/ws");
        let (socket, _) =
            tokio::time::timeout(DEADLINE, tokio_tungstenite::connect_async(url)).await.unwrap().unwrap();
        Self { socket }
    }

    pub(crate) async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.unwrap();
    }

    /// The next message; none: the connection was closed, with this code.
    pub(crate) async fn next(&mut self) -> Result<Value, Option<u16>> {
        loop {
            match tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("no message in time") {
                Some(Ok(Message::Text(text))) => return Ok(serde_json::from_str(&text).unwrap()),
                Some(Ok(Message::Close(close))) => return Err(close.map(|close| close.code.into())),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Err(None),
            }
        }
    }

    /// The next message of this type; others are passed over.
    pub(crate) async fn wait(&mut self, kind: &str) -> Value {
        loop {
            let message = self.next().await.unwrap_or_else(|code| panic!("closed ({code:?}) before {kind}"));
            if message["type"] == kind {
                return message;
            }
            assert_ne!(message["type"], "error", "{message}");
        }
    }

    /// Subscribes to topics, and waits until that is confirmed. Returns the token.
    pub(crate) async fn subscribe(&mut self, id: &str, topics: &[&str], more: Value) -> String {
        let mut message = json!({ "type": "subscribe", "id": id, "topics": topics });
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.send(message).await;
        self.wait("subscribed").await["token"].as_str().unwrap().to_owned()
    }

    /// The code of the refusal of a message.
    pub(crate) async fn refusal(&mut self, message: Value) -> String {
        self.send(message.clone()).await;
        let answer = self.next().await.unwrap();
        assert_eq!(answer["type"], "error", "{message} was not refused: {answer}");
        answer["code"].as_str().unwrap().to_owned()
    }

    /// Payloads of so many events, in the order in which they come.
    pub(crate) async fn payloads(&mut self, count: usize) -> Vec<Value> {
        let mut payloads = Vec::new();
        while payloads.len() < count {
            payloads.push(self.wait("event").await["event"]["payload"].clone());
        }
        payloads
    }
}

/// A stream of server-sent events.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) response: reqwest::Response,
    read: String,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) event: String,
    pub(crate) id: String,
    pub(crate) data: Value,
}

impl Stream {
    /// The next event; comments and hints are passed over. None: the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Sent> {
        loop {
            while let Some((block, rest)) = self.read.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.read = rest;
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.unwrap_or_default().to_owned()
                };
                if !field("data").is_empty() {
                    let data = serde_json::from_str(&field("data")).unwrap();
                    return Some(Sent { event: field("event"), id: field("id"), data });
                }
            }
            let chunk = tokio::time::timeout(DEADLINE, self.response.chunk()).await.expect("nothing in time");
            self.read.push_str(std::str::from_utf8(&chunk.ok()??).unwrap());
        }
    }

    /// The next with an event of the log.
    pub(crate) async fn event(&mut self) -> Sent {
        loop {
            let sent = self.next().await.expect("the stream goes on");
            if sent.event.is_empty() {
                return sent;
            }
        }
    }
}
