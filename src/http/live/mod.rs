//! Live clients over HTTP: WebSocket and server-sent events. What they are sent is decided in `live/`.

mod gzip;
mod sse;
mod ws;

use std::time::SystemTime;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use rand::Rng as _;
use tokio::time::Instant;

pub(super) use self::{sse::stream, ws::ws};
use super::problem;
use crate::live::{Full, caller::Caller};

/// Clients that are sent away come back after up to so many milliseconds, each after a time of its own.
const SPREAD: u64 = 5_000;

/// When a client that is sent away may come back, in milliseconds.
fn retry_after() -> u64 {
    rand::rng().random_range(0..SPREAD)
}

/// When a caller's token expires, as this process measures time; none: never.
fn expiry(caller: &Caller) -> Option<Instant> {
    let at = SystemTime::from(caller.expires_at()?);
    Some(Instant::now() + at.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Waits until then; without a time for ever.
async fn reached(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// There is no room for another client.
fn full(full: Full) -> Response {
    come_back(match full {
        Full::All => "there are as many live clients as may be (realtime.max_connections)",
        Full::Address => "your address has as many live clients as it may have (realtime.max_per_address)",
    })
}

fn come_back(detail: &str) -> Response {
    let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, detail);
    let seconds = 1 + retry_after() / 1_000;
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// Live clients are not served here.
fn off() -> Response {
    problem(StatusCode::NOT_FOUND, "live clients are off (realtime.enabled)")
}
