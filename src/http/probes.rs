//! `/livez`, `/readyz` and `/metrics`. A destination that is down fails none of them.

use std::{future::Future, time::Duration};

use axum::{
    extract::{RawQuery, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::Server;
use crate::relay::Health;

/// Timeout of the database's answer for `/readyz`.
const READY: Duration = Duration::from_secs(3);

/// Readiness and state of a relay: [`Health`], or a stub in tests.
pub trait Readiness: Clone + Send + Sync + 'static {
    /// Whether the database answers and its schema fits; otherwise the reason.
    fn ready(&self) -> impl Future<Output = Result<(), String>> + Send;
    /// State shown by `?verbose`. Contains no payload and no secret.
    fn state(&self) -> serde_json::Value;
}

impl Readiness for Health {
    async fn ready(&self) -> Result<(), String> {
        Health::ready(self).await
    }

    fn state(&self) -> serde_json::Value {
        Health::state(self)
    }
}

/// The process runs. Does not ask the database: restarting a relay does not fix a database.
pub(super) async fn livez(RawQuery(query): RawQuery) -> Response {
    if is_verbose(query.as_deref()) {
        return json(
            StatusCode::OK,
            &serde_json::json!({ "live": true, "version": env!("CARGO_PKG_VERSION") }),
        );
    }
    "ok\n".into_response()
}

/// The relay can work: it is not draining, the database answers within 3 s, and its schema fits.
pub(super) async fn readyz<R: Readiness>(
    State(server): State<Server<R>>,
    RawQuery(query): RawQuery,
) -> Response {
    let ready = ready(&server).await;
    let status = status(ready.is_ok());
    if is_verbose(query.as_deref()) {
        return json(
            status,
            &serde_json::json!({
                "ready": ready.is_ok(),
                "reason": ready.err(),
                "state": server.readiness.state(),
            }),
        );
    }
    (status, ready.map_or_else(|reason| format!("not ready: {reason}\n"), |()| "ok\n".to_owned()))
        .into_response()
}

/// The same for anybody: without the reason, which may name what others should not know.
pub(super) async fn ready_or_not<R: Readiness>(State(server): State<Server<R>>) -> Response {
    let ready = ready(&server).await.is_ok();
    (status(ready), if ready { "ok\n" } else { "not ready\n" }).into_response()
}

async fn ready<R: Readiness>(server: &Server<R>) -> Result<(), String> {
    if server.draining.is_cancelled() {
        return Err("draining".to_owned());
    }
    let late = || format!("the database did not answer within {}", crate::delivery::duration::format(READY));
    tokio::time::timeout(READY, server.readiness.ready()).await.unwrap_or_else(|_| Err(late()))
}

fn status(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

/// All metrics in the OpenMetrics text format.
pub(super) async fn metrics<R: Readiness>(State(server): State<Server<R>>) -> Response {
    page_of_metrics(server.telemetry.render())
}

/// This text as a page of metrics.
pub(super) fn page_of_metrics(text: String) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response()
}

fn is_verbose(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")))
}

fn json(status: StatusCode, body: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], format!("{body}\n")).into_response()
}
