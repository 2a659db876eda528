//! A receiver that knows for which version of a subscription a request was sent, by its path.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};
use uuid::Uuid;

use super::model::{RETRY_AFTER, Request};
use crate::support::pause;

/// What is answered at one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Good,
    /// Good, after up to a second.
    Slow,
    /// Every second request fails, or every second event of a batch.
    Failing,
    /// 429 with `Retry-After`.
    Busy,
    Gone,
}

#[derive(Debug, Default)]
struct Shared {
    modes: HashMap<u32, Mode>,
    requests: Vec<Request>,
}

/// A running receiver.
#[derive(Debug)]
pub(super) struct Receiver {
    base: String,
    shared: Arc<Mutex<Shared>>,
    _running: JoinSet<()>,
}

impl Receiver {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::<Mutex<Shared>>::default();
        let router = Router::new().route("/{path}", post(answer)).with_state(shared.clone());
        let mut running = JoinSet::new();
        running.spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { base, shared, _running: running }
    }

    pub(super) fn url(&self, path: u32) -> String {
        format!("{}/{path}", self.base)
    }

    pub(super) fn set(&self, path: u32, mode: Mode) {
        self.shared.lock().unwrap().modes.insert(path, mode);
    }

    pub(super) fn all_good(&self) {
        self.shared.lock().unwrap().modes.clear();
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.shared.lock().unwrap().requests.clone()
    }
}

async fn answer(
    State(shared): State<Arc<Mutex<Shared>>>,
    Path(path): Path<u32>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let arrived = Instant::now();
    let batch: Option<Vec<Value>> = match serde_json::from_slice(&body) {
        Ok(Value::Array(events)) => Some(events),
        _ => None,
    };
    let events: Vec<Uuid> = match &batch {
        Some(events) => events.iter().map(|event| event["id"].as_str().unwrap().parse().unwrap()).collect(),
        None => vec![headers["webhook-id"].to_str().unwrap().parse().unwrap()],
    };
    let (mode, first) = {
        let mut shared = shared.lock().unwrap();
        let first = shared.requests.len();
        let begun =
            events.iter().map(|event| Request { path, event: *event, arrived, answered: None, status: 0 });
        shared.requests.extend(begun);
        (shared.modes.get(&path).copied().unwrap_or(Mode::Good), first)
    };
    let takes = match mode {
        Mode::Slow => rand::random_range(200..1_000),
        // Some of these answers come when the subscription has changed.
        Mode::Busy | Mode::Gone if rand::random_bool(0.3) => rand::random_range(200..1_500),
        _ => rand::random_range(0..60),
    };
    pause(Duration::from_millis(takes)).await;
    let status = match mode {
        Mode::Busy => 429,
        Mode::Gone => 410,
        Mode::Failing if rand::random_bool(0.5) => 500,
        _ => 200,
    };
    let fails =
        |_: &Uuid| mode == Mode::Failing && batch.is_some() && status == 200 && rand::random_bool(0.5);
    let failed: Vec<Uuid> = events.iter().copied().filter(fails).collect();
    let mut shared = shared.lock().unwrap();
    for request in &mut shared.requests[first..first + events.len()] {
        request.answered = Some(Instant::now());
        request.status = if failed.contains(&request.event) { 500 } else { status };
    }
    drop(shared);
    match (status, &batch) {
        (200, Some(_)) => axum::Json(json!({ "failed": failed })).into_response(),
        (429, _) => {
            let after = [("retry-after", RETRY_AFTER.as_secs().to_string())];
            (StatusCode::TOO_MANY_REQUESTS, after).into_response()
        }
        _ => StatusCode::from_u16(status).unwrap().into_response(),
    }
}
