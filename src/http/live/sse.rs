//! `/v1/stream`: server-sent events.

use std::convert::Infallible;

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use tokio::time::Interval;
use tokio_util::sync::CancellationToken;

use super::{come_back, expiry, full, gzip::Gzip, off, reached, retry_after};
use crate::{
    http::{Server, places::Seat, probes::Readiness, problem, problem_of},
    live::{
        Closed, Code, Ended, Format, Frame, Next, Refusal, Session, Subscribe, Transport, caller::Caller,
    },
};

/// Serves a stream of events.
pub(in crate::http) async fn stream<R: Readiness>(
    State(server): State<Server<R>>,
    Extension(caller): Extension<Caller>,
    Extension(seat): Extension<Seat>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let Some(room) = server.room.clone() else { return off() };
    if room.leaving().is_cancelled() {
        return later(&headers, come_back("this relay stops; another one serves you"));
    }
    let request = match request(&uri, &headers) {
        Ok(request) => request,
        Err(reason) => return problem(StatusCode::BAD_REQUEST, &reason),
    };
    let expires = expiry(&caller);
    let mut session = match room.admit(caller, seat.address(), Transport::Stream) {
        Ok(session) => session,
        Err(refused) => return later(&headers, full(refused)),
    };
    let first = match session.subscribe(Format::ServerSent, request).await {
        Ok(frame) => frame,
        Err(refusal) if refusal.code == Code::Unavailable => {
            return later(&headers, come_back(&refusal.reason));
        }
        Err(refusal) => return refused(&refusal),
    };
    let settings = room.settings();
    // A heartbeat is read, too.
    seat.leave_while_read(settings.max_lag.max(3 * settings.heartbeat));
    let gzip = accepts_gzip(&headers).then(Gzip::default);
    let is_compressed = gzip.is_some();
    let mut heartbeat = tokio::time::interval(settings.heartbeat);
    heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    heartbeat.reset();
    let stream = Stream {
        session,
        seat,
        gzip,
        heartbeat,
        leaving: room.leaving().clone(),
        expires,
        first: Some(first),
        is_over: false,
    };
    let body = futures_util::stream::unfold(stream, |mut stream| async {
        let part = Box::pin(stream.next()).await?;
        Some((Ok::<_, Infallible>(part), stream))
    });
    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "text/event-stream; charset=utf-8")
        .header(header::CACHE_CONTROL, "no-store, no-transform")
        // Proxies that would collect the answer first are asked not to.
        .header("x-accel-buffering", "no")
        // Its place among the requests is given back, so no other may follow.
        .header(header::CONNECTION, "close")
        .header(header::VARY, "accept-encoding");
    if is_compressed {
        response = response.header(header::CONTENT_ENCODING, "gzip");
    }
    response.body(Body::from_stream(body)).unwrap_or_else(|_| off())
}

/// A client of server-sent events.
struct Stream {
    session: Session,
    seat: Seat,
    gzip: Option<Gzip>,
    heartbeat: Interval,
    leaving: CancellationToken,
    expires: Option<tokio::time::Instant>,
    first: Option<Frame>,
    is_over: bool,
}

impl Stream {
    /// The next part of the body. It is asked for when the last part was taken.
    async fn next(&mut self) -> Option<Bytes> {
        self.seat.is_read();
        if self.is_over {
            return None;
        }
        let text = match self.first.take() {
            Some(first) => format!("retry: {}\n\n{}", 1_000 + retry_after() / 5, first.text).into_bytes(),
            None => self.text().await,
        };
        let Some(gzip) = &mut self.gzip else { return Some(text.into()) };
        let mut part = gzip.part(&text);
        if self.is_over {
            part.extend(gzip.end());
        }
        Some(part.into())
    }

    async fn text(&mut self) -> Vec<u8> {
        loop {
            let frames = tokio::select! {
                biased;
                () = self.leaving.cancelled() => return self.over(Closed::Ended(Ended::Stopping)),
                () = reached(self.expires) => return self.over(Closed::Expired),
                _ = self.heartbeat.tick() => {
                    let mut text = b":\n\n".to_vec();
                    push(&mut text, &self.session.heartbeat());
                    return text;
                }
                next = self.session.next() => match next {
                    Next::Frames(frames) => frames,
                    Next::Ended(why) => return self.over(Closed::Ended(why)),
                },
            };
            if !frames.is_empty() {
                let mut text = Vec::new();
                push(&mut text, &frames);
                // An error that ends the only subscription ends the stream.
                self.is_over = self.session.subscriptions() == 0;
                return text;
            }
        }
    }

    /// The end: the client comes back after a while, with its last id.
    fn over(&mut self, why: Closed) -> Vec<u8> {
        self.session.closed(why);
        self.is_over = true;
        format!("retry: {}\n\n", retry_after()).into_bytes()
    }
}

fn push(text: &mut Vec<u8>, frames: &[Frame]) {
    for frame in frames {
        text.extend_from_slice(frame.text.as_str().as_bytes());
    }
}

/// What the address asks for. `Last-Event-ID` is where a client comes back.
fn request(uri: &Uri, headers: &HeaderMap) -> Result<Subscribe, String> {
    let mut request = Subscribe::default();
    let mut returns = None;
    let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    for (name, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        match &*name {
            "topics" => request.topics.get_or_insert_default().extend(list(&value)),
            "keys" => request.keys.get_or_insert_default().extend(list(&value)),
            "channel" => request.channel = Some(value.into_owned()),
            "filter" => request.filter = Some(value.into_owned()),
            "since" => request.since = Some(value.into_owned()),
            "snapshot" => request.snapshot = !matches!(&*value, "false" | "0"),
            "last_event_id" => returns = Some(value.into_owned()),
            "access_token" => {}
            _ => {
                return Err(format!(
                    "{name:?} is no parameter; use topics, channel, keys, filter, since, snapshot, last_event_id"
                ));
            }
        }
    }
    if let Some(id) = headers.get("last-event-id") {
        let id = id.to_str().map_err(|_| "Last-Event-ID: is not a token".to_owned())?;
        returns = Some(id.to_owned());
    }
    if let Some(returns) = returns.filter(|returns| !returns.is_empty()) {
        (request.since, request.snapshot) = (Some(returns), false);
    }
    Ok(request)
}

fn refused(refusal: &Refusal) -> Response {
    let status = match refusal.code {
        Code::Forbidden | Code::ChannelsOnly => StatusCode::FORBIDDEN,
        Code::UnknownChannel => StatusCode::NOT_FOUND,
        Code::TokenTooOld | Code::OtherDatabase => StatusCode::GONE,
        _ => StatusCode::BAD_REQUEST,
    };
    problem_of(status, &refusal.reason, Some(&refusal.code.word()))
}

/// What is refused for a while. An `EventSource` never comes back after another status than 200: it gets a
/// stream that ends at once.
fn later(headers: &HeaderMap, refusal: Response) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    if accepts != "text/event-stream" {
        return refusal;
    }
    let wait = 1_000 + retry_after();
    let stream = [(header::CONTENT_TYPE, "text/event-stream; charset=utf-8"), (header::CONNECTION, "close")];
    (stream, format!("retry: {wait}\n\n")).into_response()
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        name.trim().eq_ignore_ascii_case("gzip")
            && !matches!(weight.trim(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000")
    })
}
