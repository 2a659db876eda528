//! A gateway in this process, and clients of it over real sockets.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use pgoutbox::{
    Servers,
    http::{self, Readiness, Server},
    live::{Gateway, Settings, Sources},
    relay::telemetry::Telemetry,
    store::ConnectionSettings,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    runtime::{Handle, Runtime},
};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{ClientRequestBuilder, Error, Message},
};
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
    telemetry: Arc<Telemetry>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    apart: Option<Runtime>,
}

impl LiveBox {
    /// Starts a gateway. It polls slowly, so that a missed notification is noticed.
    pub(crate) async fn start(database: &Database) -> Self {
        let poll = Duration::from_secs(20);
        Self::start_with(database, Settings { poll, ..Settings::default() }, http::Settings::default()).await
    }

    #[expect(clippy::unused_async, reason = "like the other ways to start something in a test")]
    pub(crate) async fn start_with(
        database: &Database,
        settings: Settings,
        http_settings: http::Settings,
    ) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), database, settings, http_settings)
    }

    /// Starts a gateway on this address.
    pub(crate) fn start_at(
        address: SocketAddr,
        database: &Database,
        settings: Settings,
        http_settings: http::Settings,
    ) -> Self {
        Self::start_on(address, database, settings, http_settings, None)
    }

    /// Starts a gateway on threads of its own, as `pgoutbox run` does.
    pub(crate) fn start_apart(database: &Database, settings: Settings) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::start_on(address, database, settings, http::Settings::default(), Some(runtime.unwrap()))
    }

    /// Starts a gateway on the right one of these servers.
    pub(crate) fn start_over(servers: &Servers) -> Self {
        let (address, http) = (SocketAddr::from(([127, 0, 0, 1], 0)), http::Settings::default());
        Self::start_with_servers(address, servers, Settings::default(), http, None)
    }

    fn start_on(
        address: SocketAddr,
        database: &Database,
        settings: Settings,
        http_settings: http::Settings,
        apart: Option<Runtime>,
    ) -> Self {
        let servers = database.relay_options.clone().into();
        Self::start_with_servers(address, &servers, settings, http_settings, apart)
    }

    fn start_with_servers(
        address: SocketAddr,
        servers: &Servers,
        settings: Settings,
        http_settings: http::Settings,
        apart: Option<Runtime>,
    ) -> Self {
        let on = apart.as_ref().map_or_else(Handle::current, |apart| apart.handle().clone());
        let _entered = on.enter();
        let connection = ConnectionSettings {
            servers: servers.clone(),
            relay: format!("gateway-{}", uuid::Uuid::new_v4().simple()),
            environment: pgoutbox::RelaySettings::default().environment,
            pool_size: 1,
            function_pool_size: 0,
            pooler: false,
            allow_superuser: false,
        };
        let telemetry = Telemetry::new();
        let listen = Some(servers.clone());
        let sources = Sources { connection, listen, news: None, telemetry: telemetry.clone() };
        let gateway = Gateway::start(sources, settings);
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (address, shutdown, tasks) =
            (listener.local_addr().unwrap(), CancellationToken::new(), TaskTracker::new());
        let server = Server {
            settings: http_settings,
            readiness: Ready,
            telemetry: telemetry.clone(),
            draining: CancellationToken::new(),
            room: Some(gateway.room().clone()),
            operators: None,
            clients: TaskTracker::new(),
        };
        tasks.spawn(http::serve(listener, server, shutdown.clone()));
        tasks.close();
        Self { address, gateway, telemetry, shutdown, tasks, apart }
    }

    pub(crate) async fn stop(self) {
        self.gateway.drain();
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.tasks.wait()).await.unwrap();
        self.gateway.close().await;
        if let Some(apart) = self.apart {
            apart.shutdown_background();
        }
    }

    /// The value of a metric, by its name with labels; 0 if it is not there yet.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let page = self.telemetry.render();
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
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
        Stream::of(response)
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let waiting = async {
        while !is_so() {
            looks.tick().await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, waiting).await.is_ok(), "not in time: {what}");
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

    /// A client that is connected from this address, or the status with which it was refused.
    pub(crate) async fn connect_from(from: IpAddr, address: SocketAddr) -> Result<Self, u16> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self::upgrade(socket, address).await
    }

    /// A client for which the system keeps little: it holds up its connection soon when it does not read.
    pub(crate) async fn narrow(address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        Self::upgrade(socket, address).await.unwrap()
    }

    async fn upgrade(socket: TcpSocket, address: SocketAddr) -> Result<Self, u16> {
        let upgrading = async {
            let stream = MaybeTlsStream::Plain(socket.connect(address).await.unwrap());
            tokio_tungstenite::client_async(format!("ws://{address}/v1/ws"), stream).await
        };
        match tokio::time::timeout(DEADLINE, upgrading).await.unwrap() {
            Ok((socket, _)) => Ok(Self { socket }),
            Err(Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Says that it leaves.
    pub(crate) async fn close(mut self) {
        self.socket.close(None).await.unwrap();
    }

    /// A client with a token, as a browser sends it.
    pub(crate) async fn connect_as(address: SocketAddr, bearer: &str) -> Self {
        let request = ClientRequestBuilder::new(format!("ws://{address}/v1/ws").parse().unwrap())
            .with_sub_protocol("pgoutbox")
            .with_sub_protocol(format!("bearer.{bearer}"));
        let connecting = tokio_tungstenite::connect_async(request);
        let (socket, answer) = tokio::time::timeout(DEADLINE, connecting).await.unwrap().unwrap();
        assert_eq!(answer.headers()["sec-websocket-protocol"], "pgoutbox");
        Self { socket }
    }

    pub(crate) async fn send_binary(&mut self, message: &[u8]) {
        self.socket.send(Message::binary(message.to_vec())).await.unwrap();
    }

    /// Waits until the connection is closed: the code and the reason; none if it just broke.
    pub(crate) async fn closed(&mut self) -> Option<(u16, String)> {
        loop {
            match tokio::time::timeout(DEADLINE, self.socket.next()).await.expect("not closed in time") {
                Some(Ok(Message::Close(close))) => {
                    return close.map(|close| (close.code.into(), close.reason.as_str().to_owned()));
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return None,
            }
        }
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
    pub(crate) fn of(response: reqwest::Response) -> Self {
        Self { response, read: String::new() }
    }

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
