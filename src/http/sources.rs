//! One address for several relays of a process, each of another database: `/sources/NAME/…` has the probe,
//! the metrics and the API of each, `/readyz` and `/metrics` those of all.

use std::{io, sync::Arc};

use axum::{
    Router,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Readiness, Server, auth, guarded, probes, problem, serve_guarded, v1};
use crate::relay::telemetry;

/// Beginning of the paths of one source.
pub(super) const SOURCES: &str = "/sources/";

/// One of several relays.
#[derive(Debug, Clone)]
pub struct Source<R> {
    /// Name of the source.
    pub name: String,
    /// What answers for it. Live clients are not served.
    pub server: Server<R>,
}

/// Serves all of them until `shutdown`. `all` answers for the process; its metrics are not shown.
///
/// # Errors
/// When the listener has no address.
pub async fn serve_sources<A: Readiness, R: Readiness>(
    listener: TcpListener,
    all: Server<A>,
    sources: Vec<Source<R>>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let guard = Arc::new(auth::Guard::new(listener.local_addr()?, &all.settings));
    let router = router(all, sources, guard.clone());
    serve_guarded(listener, router, guard, shutdown).await;
    Ok(())
}

fn router<A: Readiness, R: Readiness>(
    all: Server<A>,
    sources: Vec<Source<R>>,
    guard: Arc<auth::Guard>,
) -> Router {
    let (mut of_each, mut api) = (Router::new(), Router::new());
    let pages: Vec<_> = sources.iter().map(|source| source.server.telemetry.clone()).collect();
    for Source { name, server } in sources {
        let path = format!("{SOURCES}{name}");
        if let Some(operators) = server.operators.clone() {
            api = api.nest(&path, v1::router(operators));
        }
        let own = Router::new()
            .route("/readyz", get(probes::readyz::<R>))
            .route("/metrics", get(probes::metrics::<R>))
            .with_state(server);
        of_each = of_each.nest(&path, own);
    }
    let metrics = move || {
        let pages: Vec<String> = pages.iter().map(|telemetry| telemetry.render()).collect();
        async move { probes::page_of_metrics(telemetry::together(&pages)) }
    };
    let routes = of_each
        .route("/livez", get(probes::livez))
        .route("/readyz", get(probes::readyz::<A>))
        .route("/metrics", get(metrics))
        .route("/v1/{*rest}", axum::routing::any(of_no_source))
        .fallback(|| async {
            problem(StatusCode::NOT_FOUND, "not found; see /livez, /readyz, /metrics and /sources/NAME/v1/")
        });
    guarded(routes, Some(api), guard).with_state(all)
}

async fn of_no_source() -> Response {
    let detail = "this process serves several sources: use /sources/NAME/v1/; \
                  a gateway serves the live clients of one database";
    let mut answer = problem(StatusCode::NOT_FOUND, detail);
    answer.headers_mut().insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-store"));
    answer.into_response()
}

/// The path without the name of its source.
pub(super) fn within(path: &str) -> &str {
    let rest = path.strip_prefix(SOURCES).and_then(|rest| rest.find('/').map(|end| &rest[end..]));
    rest.unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::within;

    #[test]
    fn a_path_of_a_source_is_judged_as_the_same_path_of_the_only_one() {
        for (path, expected) in [
            ("/sources/shop/v1/status", "/v1/status"),
            ("/sources/shop/readyz", "/readyz"),
            ("/sources/shop", "/sources/shop"),
            ("/sources//readyz", "/readyz"),
            ("/v1/sources/shop/readyz", "/v1/sources/shop/readyz"),
            ("/metrics", "/metrics"),
        ] {
            assert_eq!(within(path), expected, "{path}");
        }
    }
}
