//! HTTP for operators: probes, metrics and the API (`v1/`), by default on 127.0.0.1:7411, and if wanted
//! probes alone on an address that anybody may reach. Calls no stage and shows no secret.
//!
//! A request passes, in this order: a place for its connection (`places.rs`); Host, Origin and token
//! (`auth/`); the deadline and the limit of bodies; a handler, which finds out who asks by the
//! [`Caller`](crate::live::caller::Caller) among the extensions.

mod auth;
mod live;
mod places;
mod probes;
mod script;
mod sources;
pub mod v1;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

pub use auth::{Jwks, Jwt, Keys, LARGEST as LARGEST_JWKS, Pace, Remote, origin};
use places::{Places, Seat};
pub use probes::Readiness;
pub use sources::{Source, serve_sources};

use secrecy::SecretString;

use crate::{live::Room, relay::telemetry::Telemetry};

/// Timeout of receiving the head of a request, also of the next one on an open connection.
const HEAD: Duration = Duration::from_secs(5);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 16 * 1024;
/// The largest body of a request, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// Timeout of a handler.
const REQUEST: Duration = Duration::from_secs(10);
/// Longest life of a connection: a client that never reads does not occupy it longer.
const CONNECTION: Duration = Duration::from_secs(120);
/// Time for open requests to finish when the server stops.
const CLOSING: Duration = Duration::from_secs(3);
/// Bytes of an answer that the system holds for a client, which Linux doubles. By itself it would hold some
/// MiB of each live client that does not read.
const SEND_BUFFER: usize = 128 * 1024;
/// Pause after a failed accept: without file descriptors left, accepting at once would be a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Settings of `[http]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address to listen on; none disables the server.
    pub listen: Option<SocketAddr>,
    /// Address that serves nothing but probes, without details; none disables it.
    pub probes: Option<SocketAddr>,
    /// Token of operators, for every request except probes. This or `jwt` is required unless `listen` is on
    /// loopback.
    pub token: Option<SecretString>,
    /// Origins, such as `https://app.example.com`, of pages that may use `/v1/`.
    pub origins: Vec<String>,
    /// Whose JSON Web Tokens are valid; none: nobody's.
    pub jwt: Option<Jwt>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 7411))),
            probes: None,
            token: None,
            origins: Vec::new(),
            jwt: None,
        }
    }
}

impl Settings {
    /// Goes on with the keys that were fetched for other settings, if they come from the same URL: they are
    /// valid also while fetching fails.
    pub fn keep_keys_of(&mut self, before: &Self) {
        let (Some(Jwt { jwks: Some(Jwks::Url(own)), .. }), Some(Jwt { jwks: Some(Jwks::Url(kept)), .. })) =
            (&mut self.jwt, &before.jwt)
        else {
            return;
        };
        if own.is_same(kept) {
            *own = kept.clone();
        }
    }

    /// Fetches `http.jwt.jwks`, if it is a URL.
    ///
    /// # Errors
    /// What is wrong with it, for the operator.
    pub async fn check_keys(&self) -> Result<(), String> {
        match &self.jwt {
            Some(Jwt { jwks: Some(Jwks::Url(remote)), .. }) => remote.check().await,
            _ => Ok(()),
        }
    }
}

/// The state that handlers use.
#[derive(Debug, Clone)]
pub struct Server<R> {
    /// Settings. The addresses are ignored: the listener is an argument of [`serve`].
    pub settings: Settings,
    /// Whether the relay can work.
    pub readiness: R,
    /// Metrics of the relay.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled when the relay begins to drain; `/readyz` then answers 503.
    pub draining: CancellationToken,
    /// Where live clients are served; none: they are not.
    pub room: Option<Arc<Room>>,
    /// Live clients by WebSocket, which are waited for when the server stops.
    pub clients: TaskTracker,
    /// How `/v1` gets to the database; none: it is not served.
    pub operators: Option<v1::Operators>,
}

/// Serves probes and metrics until `shutdown`, then waits up to 3 s for open requests.
///
/// # Errors
/// When the listener has no address.
pub async fn serve<R: Readiness>(
    listener: TcpListener,
    server: Server<R>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with(listener, server, Router::new(), shutdown).await
}

/// Serves further paths, too.
pub(crate) async fn serve_with<R: Readiness>(
    listener: TcpListener,
    server: Server<R>,
    more: Router<Server<R>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let clients = server.clients.clone();
    let guard = Arc::new(auth::Guard::new(listener.local_addr()?, &server.settings));
    let router = router(server, more, guard.clone());
    serve_guarded(listener, router, guard, shutdown).await;
    clients.close();
    let _ = tokio::time::timeout(CLOSING, clients.wait()).await;
    Ok(())
}

async fn serve_guarded(
    listener: TcpListener,
    router: Router,
    guard: Arc<auth::Guard>,
    shutdown: CancellationToken,
) {
    // Connections inherit it. Best effort: without it the system takes more memory.
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&listener, SEND_BUFFER);
    tokio::join!(serve_router(listener, router, shutdown.clone()), guard.follow(&shutdown));
}

/// Serves nothing but probes, without details, as [`serve`] does.
///
/// # Errors
/// When the listener has no address.
pub async fn serve_probes<R: Readiness>(
    listener: TcpListener,
    server: Server<R>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = probes_router(server, listener.local_addr()?);
    serve_router(listener, router, shutdown).await;
    Ok(())
}

async fn serve_router(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let places = Arc::new(Places::default());
    let connections = TaskTracker::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(error = %error, "accepting a connection failed");
                    let _ = tokio::time::timeout(PAUSE, shutdown.cancelled()).await;
                    continue;
                }
            },
        };
        // Without a place the connection is closed at once.
        let Some(place) = places.take(peer.ip().to_canonical()) else { continue };
        let (router, shutdown, close) = (router.clone(), shutdown.clone(), place.close.clone());
        let seat = Seat::new(peer.ip().to_canonical(), place);
        let serving = async move {
            tokio::select! {
                () = serve_connection(stream, router, seat.clone(), shutdown) => {}
                () = seat.over(CONNECTION) => {}
            }
        };
        connections.spawn(close.run_until_cancelled_owned(serving));
    }
    connections.close();
    // Connections that are left end with the runtime, or after CONNECTION.
    let _ = tokio::time::timeout(CLOSING, connections.wait()).await;
}

/// Serves one connection until it ends or the server stops. Errors of a client are ignored.
async fn serve_connection(
    stream: tokio::net::TcpStream,
    router: Router,
    seat: Seat,
    shutdown: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(seat.clone());
        let (answering, answer) = (seat.answering(), router.call(request));
        async move {
            let answer = answer.await;
            drop(answering);
            answer
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn router<R: Readiness>(server: Server<R>, more: Router<Server<R>>, guard: Arc<auth::Guard>) -> Router {
    let routes = more
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz::<R>))
        .route("/metrics", get(probes::metrics::<R>))
        .route(auth::SCRIPT, get(script::client))
        .route("/v1/ws", get(live::ws::<R>))
        .route("/v1/stream", get(live::stream::<R>))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "not found; see /livez, /readyz, /metrics and /v1/openapi.json")
        });
    let api = server.operators.clone().map(v1::router);
    guarded(routes, api, guard).with_state(server)
}

fn probes_router<R: Readiness>(server: Server<R>, address: SocketAddr) -> Router {
    let routes = Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(probes::ready_or_not::<R>))
        .fallback(|| async { problem(StatusCode::NOT_FOUND, "not found; see /livez and /readyz") });
    guarded(routes, None, Arc::new(auth::Guard::of_probes(address))).with_state(server)
}

fn guarded<R: Readiness>(
    routes: Router<Server<R>>,
    api: Option<Router<Server<R>>>,
    guard: Arc<auth::Guard>,
) -> Router<Server<R>> {
    routes
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "this path allows only GET")
        })
        .layer(RequestBodyLimitLayer::new(LARGEST_BODY))
        // It limits its bodies itself: those of events are larger.
        .merge(api.unwrap_or_default())
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST))
        .layer(middleware::from_fn_with_state(guard, auth::check))
}

/// An error response in the format of RFC 9457.
fn problem(status: StatusCode, detail: &str) -> Response {
    problem_of(status, detail, None)
}

/// An error response with a stable word for programs.
fn problem_of(status: StatusCode, detail: &str, code: Option<&str>) -> Response {
    let title = status.canonical_reason();
    let mut body = serde_json::json!({
        "type": "about:blank", "title": title, "status": status.as_u16(), "detail": detail,
    });
    if let Some(code) = code {
        body["code"] = code.into();
    }
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}
