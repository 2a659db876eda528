//! The HTTP server over real sockets: access, probes and metrics.

use std::{net::SocketAddr, time::Duration};

use pgoutbox::{
    http::{Readiness, Server, Settings, serve, serve_probes},
    relay::telemetry::Telemetry,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Deadline of every wait in this file.
const DEADLINE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub(crate) struct Stub(Result<(), &'static str>);

impl Readiness for Stub {
    async fn ready(&self) -> Result<(), String> {
        self.0.map_err(ToOwned::to_owned)
    }

    fn state(&self) -> serde_json::Value {
        serde_json::json!({ "permits": 7 })
    }
}

pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    draining: CancellationToken,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// The address that serves nothing but probes.
async fn started_probes(ready: Result<(), &'static str>) -> Running {
    started_as(true, "0.0.0.0:0", None, ready).await
}

async fn started(listen: &str, token: Option<&str>, ready: Result<(), &'static str>) -> Running {
    started_as(false, listen, token, ready).await
}

async fn started_as(
    only_probes: bool,
    listen: &str,
    token: Option<&str>,
    ready: Result<(), &'static str>,
) -> Running {
    let settings = Settings { token: token.map(Into::into), ..Settings::default() };
    running(only_probes, listen, settings, ready).await
}

/// A server with these settings.
pub(crate) async fn running(
    only_probes: bool,
    listen: &str,
    settings: Settings,
    ready: Result<(), &'static str>,
) -> Running {
    let listener = TcpListener::bind(listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
    let server = Server {
        settings,
        readiness: Stub(ready),
        telemetry: Telemetry::new(),
        draining: draining.clone(),
        room: None,
        clients: TaskTracker::new(),
        operators: None,
    };
    let tasks = TaskTracker::new();
    if only_probes {
        tasks.spawn(serve_probes(listener, server, shutdown.clone()));
    } else {
        tasks.spawn(serve(listener, server, shutdown.clone()));
    }
    tasks.close();
    Running { address: SocketAddr::from(([127, 0, 0, 1], address.port())), draining, shutdown, tasks }
}

impl Running {
    /// A server that runs already.
    pub(crate) fn at(address: SocketAddr) -> Self {
        let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
        Self { address, draining, shutdown, tasks: TaskTracker::new() }
    }

    /// Sends a request unchanged and reads until the connection closes.
    pub(crate) async fn raw(&self, request: &str) -> String {
        timeout(DEADLINE, async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        })
        .await
        .expect("an answer")
    }

    /// Sends GET with further header lines. Adds `Host:` if it is missing.
    pub(crate) async fn get(&self, path: &str, headers: &[&str]) -> String {
        let host = if headers.iter().any(|line| line.starts_with("Host:")) {
            String::new()
        } else {
            format!("Host: {}\r\n", self.address)
        };
        let headers: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        self.raw(&format!("GET {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n\r\n")).await
    }

    pub(crate) async fn status(&self, path: &str, headers: &[&str]) -> u16 {
        let answer = self.get(path, headers).await;
        answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("no status: {answer:?}"))
    }
}

#[tokio::test]
async fn probes_and_metrics_answer() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    assert_eq!(server.status("/livez", &[]).await, 200);
    assert_eq!(server.status("/readyz", &[]).await, 200);
    let metrics = server.get("/metrics", &[]).await;
    assert!(
        metrics.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
        "{metrics}"
    );
    assert!(metrics.trim_end().ends_with("# EOF"), "{metrics}");
    let verbose = server.get("/readyz?verbose", &[]).await;
    assert!(verbose.contains("\"permits\":7") && verbose.contains("application/json"), "{verbose}");
}

#[tokio::test]
async fn the_address_of_probes_tells_anybody_whether_the_relay_is_ready_and_nothing_else() {
    let server = started_probes(Err("the login shop_relay lacks rights")).await;
    for host in ["Host: 10.0.0.7:7413", "Host: relay.internal"] {
        assert_eq!(server.status("/livez", &[host]).await, 200);
        let answer = server.get("/readyz?verbose", &[host]).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 ") && body == "not ready\n", "{answer}");
    }
    assert!(server.get("/livez?verbose", &[]).await.ends_with("\r\n\r\nok\n"));
    for path in ["/metrics", "/v1/status", "/", "/livez/../metrics"] {
        assert_eq!(server.status(path, &[]).await, 404, "{path}");
    }
    let server = started_probes(Ok(())).await;
    assert_eq!(server.status("/readyz", &[]).await, 200);
    server.draining.cancel();
    assert_eq!(server.status("/readyz", &[]).await, 503);
}

#[tokio::test]
async fn a_relay_that_cannot_work_is_alive_but_not_ready() {
    let server = started("127.0.0.1:0", None, Err("the schema is newer")).await;
    assert_eq!(server.status("/livez", &[]).await, 200);
    let answer = server.get("/readyz", &[]).await;
    assert!(
        answer.starts_with("HTTP/1.1 503 ") && answer.contains("not ready: the schema is newer"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_draining_relay_is_not_ready_but_still_answers() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    server.draining.cancel();
    assert_eq!(server.status("/readyz", &[]).await, 503);
    assert_eq!(server.status("/livez", &[]).await, 200);
    assert_eq!(server.status("/metrics", &[]).await, 200);
    let verbose = server.get("/readyz?verbose", &[]).await;
    assert!(verbose.starts_with("HTTP/1.1 503 ") && verbose.contains("\"reason\":\"draining\""), "{verbose}");
}

#[tokio::test]
async fn connections_that_send_half_a_request_keep_no_probe_waiting() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    let mut strangers = Vec::new();
    for number in 0..400 {
        let mut stranger = TcpStream::connect(server.address).await.unwrap();
        let half = if number % 2 == 0 { "GET /livez HTTP/1.1\r\nHost: loc" } else { "" };
        stranger.write_all(half.as_bytes()).await.unwrap();
        strangers.push(stranger);
    }
    for path in ["/livez", "/readyz"] {
        let probe = timeout(Duration::from_secs(3), server.status(path, &[])).await;
        assert_eq!(probe, Ok(200), "{path}");
    }
    // Somebody who sends a whole request is served among them, again and again.
    let mut patient = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        let request = format!("GET /livez HTTP/1.1\r\nHost: {}\r\n\r\n", server.address);
        patient.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        timeout(DEADLINE, patient.read_exact(&mut answer)).await.unwrap().unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        let mut rest = [0; 1024];
        timeout(DEADLINE, patient.read(&mut rest)).await.unwrap().unwrap();
    }
    drop(strangers);
}

#[tokio::test]
async fn errors_are_problem_documents() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    let missing = server.get("/nowhere", &[]).await;
    assert!(
        missing.starts_with("HTTP/1.1 404 ")
            && missing.contains("content-type: application/problem+json\r\n"),
        "{missing}"
    );
    let posted = server
        .raw(&format!(
            "POST /livez HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            server.address
        ))
        .await;
    assert!(posted.starts_with("HTTP/1.1 405 ") && posted.contains("application/problem+json"), "{posted}");
}

#[tokio::test]
async fn on_loopback_only_names_of_this_machine_are_accepted_as_host() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    for host in ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:9999", "[::1]:7411"] {
        assert_eq!(server.status("/metrics", &[&format!("Host: {host}")]).await, 200, "{host}");
    }
    for host in
        ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.2", "user@localhost"]
    {
        for path in ["/metrics", "/livez", "/nowhere"] {
            assert_eq!(
                server.status(path, &[&format!("Host: {host}")]).await,
                403 - 3 * u16::from(host.contains('@')),
                "{host} {path}"
            );
        }
    }
    assert_eq!(server.status("/livez", &["Host: localhost", "Host: evil.example"]).await, 400);
    assert!(server.raw("GET /livez HTTP/1.0\r\n\r\n").await.contains(" 400 "));
    // An address in the request line would override the header.
    assert_eq!(server.status("http://evil.example/livez", &["Host: localhost"]).await, 400);
}

#[tokio::test]
async fn pages_of_another_origin_are_refused_before_anything_else() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    let own = format!("Origin: http://{}", server.address);
    assert_eq!(server.status("/metrics", &[&own]).await, 200);
    for origin in ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", "file://", ""]
    {
        for path in ["/metrics", "/livez", "/nowhere"] {
            assert_eq!(server.status(path, &[&format!("Origin: {origin}")]).await, 403, "{origin} {path}");
        }
    }
    assert_eq!(server.status("/metrics", &[&own, "Origin: https://evil.example"]).await, 403);
}

#[tokio::test]
async fn a_token_is_required_for_everything_but_probes() {
    for listen in ["127.0.0.1:0", "0.0.0.0:0"] {
        let server = started(listen, Some("0123-token"), Ok(())).await;
        assert_eq!((server.status("/livez", &[]).await, server.status("/readyz", &[]).await), (200, 200));
        assert_eq!(server.status("/metrics", &["Authorization: Bearer 0123-token"]).await, 200);
        assert_eq!(server.status("/metrics", &["authorization: bearer 0123-token"]).await, 200);
        for wrong in [
            "Bearer 0123-toke",
            "Bearer 0123-token1",
            "Bearer ",
            "Basic 0123-token",
            "0123-token",
            "Bearer 0123-TOKEN",
        ] {
            assert_eq!(
                server.status("/metrics", &[&format!("Authorization: {wrong}")]).await,
                401,
                "{wrong}"
            );
        }
        let bare = server.get("/nowhere", &[]).await;
        assert!(bare.starts_with("HTTP/1.1 401 ") && bare.contains("www-authenticate: Bearer"), "{bare}");
        assert_eq!(server.status("/livez/../metrics", &[]).await, 401);
    }
}

#[tokio::test]
async fn any_host_is_accepted_where_a_token_is_required() {
    let server = started("0.0.0.0:0", Some("t"), Ok(())).await;
    assert_eq!(server.status("/livez", &["Host: relay.internal"]).await, 200);
    assert_eq!(
        server
            .status(
                "/metrics",
                &["Host: relay.internal", "Authorization: Bearer t", "Origin: https://relay.internal"]
            )
            .await,
        200
    );
    assert_eq!(
        server
            .status(
                "/metrics",
                &["Host: relay.internal", "Authorization: Bearer t", "Origin: https://evil.example"]
            )
            .await,
        403
    );
}

#[tokio::test]
async fn large_heads_and_bodies_are_refused() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    assert_eq!(server.status("/livez", &[&format!("X: {}", "x".repeat(20_000))]).await, 431);
    let request = format!(
        "GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        1 << 20
    );
    assert!(server.raw(&request).await.starts_with("HTTP/1.1 413 "));
}

#[tokio::test]
async fn a_silent_client_is_disconnected_and_disturbs_no_other() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    silent.write_all(b"GET /livez HTT").await.unwrap();
    assert_eq!(server.status("/livez", &[]).await, 200);
    let mut rest = Vec::new();
    let closed = timeout(DEADLINE, silent.read_to_end(&mut rest)).await;
    assert!(closed.is_ok(), "the silent client is still connected");
}

#[tokio::test]
async fn the_server_stops_although_a_client_stays_connected() {
    let server = started("127.0.0.1:0", None, Ok(())).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    server.shutdown.cancel();
    timeout(DEADLINE, server.tasks.wait()).await.expect("the server is stopped");
    assert!(TcpStream::connect(server.address).await.is_err());
}
