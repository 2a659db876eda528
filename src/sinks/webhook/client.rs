//! The HTTP client: pooled connections, one deadline for the whole attempt, no redirects, no decoding. What a
//! response means is decided in `answer`.

use std::{error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header, uri::Scheme};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use tokio::time::{Instant, timeout_at};

use super::{WebhookError, connect::Connector, room::Room, wire::Seen};
use crate::sink::egress::{Egress, Guard};

/// Idle time after which a connection is closed: the name may have another address by now.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept for each host. As many as one subscription may have in flight: with fewer, bursts to
/// one host would keep reconnecting.
const IDLE_PER_HOST: usize = 512;
/// Header lines that a response may have and still be read whole.
const HEADERS: usize = 256;
/// How often a request is sent again that an HTTP/2 server has refused without looking at it.
const REFUSALS: usize = 2;

pub(super) type Request = http::Request<Full<Bytes>>;

/// Sends requests. Cheap to clone.
#[derive(Clone)]
pub(super) struct Client {
    pool: legacy::Client<Connector, Full<Bytes>>,
    /// Whether plain HTTP goes to a proxy, which may answer instead of the destination.
    has_proxy: bool,
    /// What the proxy asks for.
    authorization: Option<HeaderValue>,
    room: Arc<Room>,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The deadline of the attempt has passed.
    #[error("no response in time")]
    TimedOut,
    /// No connection, or it broke.
    #[error("sending the request")]
    Request(#[source] legacy::Error),
    /// The connection broke within the body.
    #[error("reading the body")]
    Body(#[source] hyper::Error),
}

impl Failure {
    /// The status of a response of which no more than its first line could be read.
    pub(super) fn status(&self) -> Option<StatusCode> {
        let Self::Request(error) = self else { return None };
        let is_malformed = causes(error)
            .any(|cause| cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse));
        let mut extras = http::Extensions::new();
        error.connect_info()?.get_extras(&mut extras);
        if is_malformed { extras.get::<Arc<Seen>>()?.status() } else { None }
    }

    /// Whether an HTTP/2 server says that it has not looked at the request.
    fn is_refusal(&self) -> bool {
        let Self::Request(error) = self else { return false };
        causes(error).filter_map(|cause| cause.downcast_ref::<h2::Error>()).any(|error| {
            error.is_remote()
                && match error.reason() {
                    Some(h2::Reason::REFUSED_STREAM) => error.is_reset(),
                    Some(h2::Reason::NO_ERROR) => error.is_go_away(),
                    _ => false,
                }
        })
    }
}

fn causes(error: &legacy::Error) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(error.source(), |&cause| cause.source())
}

impl Client {
    pub(super) fn new(egress: &Egress, guard: &Guard) -> Result<Self, WebhookError> {
        let room = Room::new(egress.connections);
        let connector = Connector::new(egress, guard, Arc::clone(&room))?;
        let authorization = connector.authorization();
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_PER_HOST)
            .http1_max_headers(HEADERS)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .build(connector);
        Ok(Self { pool, has_proxy: egress.proxy.is_some(), authorization, room })
    }

    /// Sends a request. If a reused connection turns out to be closed before a byte was sent, the request is
    /// sent on another one.
    pub(super) async fn send(&self, mut request: Request, until: Instant) -> Result<Response, Failure> {
        let is_relayed = self.has_proxy && request.uri().scheme() == Some(&Scheme::HTTP);
        if let Some(authorization) = self.authorization.as_ref().filter(|_| is_relayed) {
            request.headers_mut().insert(header::PROXY_AUTHORIZATION, authorization.clone());
        }
        let mut refusals = 0;
        loop {
            let sent = self.once(request.clone(), until).await;
            if refusals < REFUSALS && sent.as_ref().is_err_and(Failure::is_refusal) {
                refusals += 1;
                continue;
            }
            return sent.map(|mut response| {
                response.is_relayed = is_relayed;
                response
            });
        }
    }

    async fn once(&self, request: Request, until: Instant) -> Result<Response, Failure> {
        let (head, body) = timeout_at(until, self.pool.request(request))
            .await
            .map_err(|_| Failure::TimedOut)?
            .map_err(Failure::Request)?
            .into_parts();
        let seen = head.extensions.get::<Arc<Seen>>().cloned().unwrap_or_default();
        seen.progress();
        let (status, headers) = (head.status, head.headers);
        let room = Arc::clone(&self.room);
        Ok(Response { status, headers, is_relayed: false, body, seen, room, until })
    }
}

/// A response whose body has not been read yet.
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// Whether a proxy may have answered instead of the destination.
    pub(super) is_relayed: bool,
    body: Incoming,
    seen: Arc<Seen>,
    room: Arc<Room>,
    until: Instant,
}

impl Drop for Response {
    fn drop(&mut self) {
        self.room.rests(&self.seen);
    }
}

impl Response {
    /// Whether the body is known to be empty.
    pub(super) fn is_empty(&self) -> bool {
        self.body.is_end_stream() || self.body.size_hint().exact() == Some(0)
    }

    /// The next part of the body, within the deadline of the attempt; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            let frame = timeout_at(self.until, self.body.frame()).await.map_err(|_| Failure::TimedOut)?;
            let Some(frame) = frame.transpose().map_err(Failure::Body)? else { return Ok(None) };
            self.seen.progress();
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}
