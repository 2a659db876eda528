//! HTTP for operators: probes and metrics, on 127.0.0.1:7411 unless told otherwise. Calls no stage and shows no secret.
//!
//! A request passes, in this order: the limit on connections, Host, Origin and token (`auth.rs`), the deadline and the
//! limit on bodies, and then a handler.

mod auth;
mod probes;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    middleware,
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower_http::{limit::RequestBodyLimitLayer, timeout::TimeoutLayer};

pub use probes::Readiness;

use secrecy::SecretString;

use crate::relay::telemetry::Telemetry;

/// Connections at once; more wait in the backlog of the listener.
const CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request, also the next one on an open connection.
const HEAD: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const LARGEST_HEAD: usize = 16 * 1024;
/// The largest body of a request, in bytes.
const LARGEST_BODY: usize = 64 * 1024;
/// How long an answer may take to be made.
const REQUEST: Duration = Duration::from_secs(10);
/// How long one connection lives at most, so that a client that never reads holds its place no longer.
const CONNECTION: Duration = Duration::from_secs(120);
/// How long open connections get to finish when the server closes.
const CLOSING: Duration = Duration::from_secs(3);
/// Wait after a connection that could not be accepted: without it, being out of file descriptors would be a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Where probes and metrics are served, and who may see them: `[http]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The address; `None`: nowhere.
    pub listen: Option<SocketAddr>,
    /// Required for every request but the probes; not optional where `listen` is not loopback.
    pub token: Option<SecretString>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7411))), token: None }
    }
}

/// What is served, and to whom.
#[derive(Debug, Clone)]
pub struct Server<R> {
    /// `listen` is not read: the listener is an argument of [`serve`].
    pub settings: Settings,
    /// Whether the relay can work.
    pub readiness: R,
    /// Its metrics.
    pub telemetry: Arc<Telemetry>,
    /// Cancelled when the relay begins to drain: `/readyz` says so from then on, while everything else goes on.
    pub draining: CancellationToken,
}

/// Serves until `shutdown`, then lets open requests finish for 3 s.
///
/// # Errors
/// When the listener has no address.
pub async fn serve<R: Readiness>(
    listener: TcpListener,
    server: Server<R>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let router = router(server, listener.local_addr()?);
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&room).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(error = %error, "a connection could not be accepted");
                    let _ = tokio::time::timeout(PAUSE, shutdown.cancelled()).await;
                    continue;
                }
            },
        };
        let (router, shutdown) = (router.clone(), shutdown.clone());
        connections.spawn(async move {
            let _permit = permit;
            let _ = tokio::time::timeout(CONNECTION, converse(stream, router, shutdown)).await;
        });
    }
    connections.close();
    // What is left then is dropped with the runtime, at the latest when its connection's time is over.
    let _ = tokio::time::timeout(CLOSING, connections.wait()).await;
    Ok(())
}

/// One connection, until it ends or the server closes. How it ends is the client's affair.
async fn converse(stream: tokio::net::TcpStream, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_header_size(LARGEST_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn router<R: Readiness>(server: Server<R>, address: SocketAddr) -> Router {
    let guard = Arc::new(auth::Guard::new(address, server.settings.token.as_ref()));
    Router::new()
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz::<R>))
        .route("/metrics", get(probes::metrics::<R>))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "there is nothing at this path; see /livez, /readyz and /metrics")
        })
        .method_not_allowed_fallback(|| async {
            problem(StatusCode::METHOD_NOT_ALLOWED, "this path takes GET only")
        })
        .layer(RequestBodyLimitLayer::new(LARGEST_BODY))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, REQUEST))
        .layer(middleware::from_fn_with_state(guard, auth::check))
        .with_state(server)
}

/// An error as RFC 9457 wants it.
fn problem(status: StatusCode, detail: &str) -> Response {
    let body = serde_json::json!({ "title": status.canonical_reason(), "status": status.as_u16(), "detail": detail });
    (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}
