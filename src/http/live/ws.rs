//! `/v1/ws`: JSON messages in both directions.
//!
//! Messages are not compressed. The library has no permessage-deflate, and a compressor for each connection
//! would cost more memory than the connection; `/v1/stream` is compressed.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Extension,
    body::Bytes,
    extract::{
        State, WebSocketUpgrade,
        ws::{CloseFrame, Message, WebSocket},
    },
    response::Response,
};
use futures_util::{SinkExt as _, StreamExt as _, stream::SplitSink};
use tokio::{sync::mpsc, time::timeout};
use tokio_tungstenite::tungstenite::{self, error::ProtocolError};
use tokio_util::sync::CancellationToken;

use super::{come_back, expiry, full, off, reached, retry_after};
use crate::{
    http::{Server, places::Seat, probes::Readiness},
    live::{
        Closed, Ended, Fault, Format, Frame, Next, Refusal, Request, Session, Settings, Transport,
        caller::Caller, error_message,
    },
};

/// The subprotocol, for clients that send their token as another one.
const PROTOCOL: &str = "pgoutbox";
/// Messages of a client that wait. It is not read further before they are answered.
const INBOX: usize = 16;
/// Bytes that are read of a client at once. They are kept for each connection, and clients say little.
const READ: usize = 4 * 1024;
/// Time for a client to answer a close.
const CLOSE: Duration = Duration::from_secs(2);

/// A code of RFC 6455, and a reason.
fn close(why: Closed) -> CloseFrame {
    let retry = || format!("{{\"retry_after_ms\":{}}}", retry_after());
    let (code, reason) = match why {
        Closed::Ended(Ended::Stopping) => (1001, retry()),
        Closed::Expired => (1008, "the token has expired".to_owned()),
        Closed::Refused(Fault::TooLarge) => (1009, "the message is too large".to_owned()),
        Closed::Refused(Fault::NoText) => (1007, "the text is not UTF-8".to_owned()),
        Closed::Refused(Fault::Protocol) => (1002, "the frame breaks RFC 6455".to_owned()),
        Closed::Ended(Ended::Lagged | Ended::OtherDatabase) => (1013, retry()),
    };
    CloseFrame { code, reason: reason.into() }
}

/// What a client says.
enum Said {
    Text(String),
    Binary,
    /// It breaks the protocol, or is too large.
    Wrong(Fault),
}

/// How it went with sending.
enum Put {
    Done,
    /// The connection is broken.
    Broken,
    /// The connection is to be closed.
    Ended(Closed),
}

/// Upgrades to a WebSocket.
pub(in crate::http) async fn ws<R: Readiness>(
    State(server): State<Server<R>>,
    Extension(caller): Extension<Caller>,
    Extension(seat): Extension<Seat>,
    upgrade: WebSocketUpgrade,
) -> Response {
    let Some(room) = server.room.clone() else { return off() };
    if room.leaving().is_cancelled() {
        return come_back("this relay stops; another one serves you");
    }
    let expires = expiry(&caller);
    let session = match room.admit(caller, seat.address(), Transport::WebSocket) {
        Ok(session) => session,
        Err(refused) => return full(refused),
    };
    seat.leave();
    let settings = room.settings().clone();
    let (clients, leaving) = (server.clients.clone(), room.leaving().clone());
    upgrade
        .protocols([PROTOCOL])
        .read_buffer_size(READ)
        .max_message_size(settings.max_message)
        .max_frame_size(settings.max_message)
        .on_upgrade(move |socket| {
            // In boxes, what is rarely under way takes no memory of each client, and the compiler less time.
            clients.track_future(Box::pin(serve(socket, session, settings, leaving, expires)))
        })
}

async fn serve(
    socket: WebSocket,
    session: Session,
    settings: Settings,
    leaving: CancellationToken,
    expires: Option<tokio::time::Instant>,
) {
    let (to, mut from) = socket.split();
    let (said, inbox) = mpsc::channel(INBOX);
    let heard = Mutex::new(Instant::now());
    let reading = async {
        while let Some(message) = from.next().await {
            *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let what = match message {
                Ok(Message::Text(text)) => Said::Text(text.as_str().to_owned()),
                Ok(Message::Binary(_)) => Said::Binary,
                // The library answers a close when it is read further, and then there is nothing more.
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Close(_)) => continue,
                Err(error) => {
                    let Some(fault) = fault(&error) else { return };
                    // Nothing more can be read. The close is sent, and then the connection ends.
                    let _ = said.send(Said::Wrong(fault)).await;
                    return std::future::pending().await;
                }
            };
            // What is said after the close is dropped, but the client's close is waited for.
            let _ = said.send(what).await;
        }
    };
    let mut client = Client { to, session, settings, inbox, heard: &heard, expires };
    let writing = async {
        let Some(why) = client.serve(&leaving).await else { return };
        client.session.closed(why);
        let close = Message::Close(Some(close(why)));
        let _ = timeout(CLOSE, client.to.send(close)).await;
        client.inbox.close();
        // The client closes the connection when it has read the close.
        let _ = timeout(CLOSE, std::future::pending::<()>()).await;
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

/// A connected client.
struct Client<'h> {
    to: SplitSink<WebSocket, Message>,
    session: Session,
    settings: Settings,
    inbox: mpsc::Receiver<Said>,
    /// When the client was heard last.
    heard: &'h Mutex<Instant>,
    /// When its token expires.
    expires: Option<tokio::time::Instant>,
}

impl Client<'_> {
    /// Answers messages and sends events, until the connection is to be closed. None: it is broken.
    async fn serve(&mut self, leaving: &CancellationToken) -> Option<Closed> {
        let mut heartbeat = tokio::time::interval(self.settings.heartbeat);
        heartbeat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        heartbeat.reset();
        let expired = reached(self.expires);
        tokio::pin!(expired);
        // When the client was first asked for a sign of life that it has not given.
        let mut asked: Option<Instant> = None;
        let mut was_sent_events = false;
        loop {
            let frames = tokio::select! {
                biased;
                () = leaving.cancelled() => return Some(Closed::Ended(Ended::Stopping)),
                () = &mut expired => return Some(Closed::Expired),
                said = self.inbox.recv() => match said? {
                    Said::Text(text) => Box::pin(self.answer(&text)).await,
                    Said::Binary => vec![refused(None, &Refusal::text_only())],
                    Said::Wrong(fault) => return Some(Closed::Refused(fault)),
                },
                _ = heartbeat.tick() => {
                    let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
                    let silent = asked.filter(|asked| heard < *asked).map(|asked| asked.elapsed());
                    // Behind many events a sign of life may take as long as they may.
                    let patience = if was_sent_events { self.settings.max_lag } else { Duration::ZERO };
                    if silent.is_some_and(|silent| silent >= patience) {
                        return None;
                    }
                    if silent.is_none() {
                        asked = Some(Instant::now());
                        was_sent_events = false;
                    }
                    let frames = self.session.heartbeat();
                    let ping = Message::Ping(Bytes::new());
                    let text = frames.into_iter().map(|frame| Message::Text(frame.text));
                    match self.put(text.chain([ping]), leaving).await {
                        Put::Done => continue,
                        Put::Broken => return None,
                        Put::Ended(why) => return Some(why),
                    }
                }
                next = self.session.next() => match next {
                    Next::Frames(frames) => frames,
                    Next::Ended(why) => return Some(Closed::Ended(why)),
                },
            };
            was_sent_events |= !frames.is_empty();
            let messages = frames.into_iter().map(|frame| Message::Text(frame.text));
            match self.put(messages, leaving).await {
                Put::Done => {}
                Put::Broken => return None,
                Put::Ended(why) => return Some(why),
            }
        }
    }

    /// Sends messages, unless the connection must be closed before the client takes them.
    async fn put(&mut self, messages: impl IntoIterator<Item = Message>, leaving: &CancellationToken) -> Put {
        let sending = async {
            for message in messages {
                self.to.feed(message).await?;
            }
            self.to.flush().await
        };
        tokio::select! {
            biased;
            sent = timeout(self.settings.max_lag, sending) => match sent {
                Ok(Ok(())) => Put::Done,
                Ok(Err(_)) => Put::Broken,
                Err(_) => Put::Ended(Closed::Ended(Ended::Lagged)),
            },
            () = leaving.cancelled() => Put::Ended(Closed::Ended(Ended::Stopping)),
            () = reached(self.expires) => Put::Ended(Closed::Expired),
        }
    }

    async fn answer(&mut self, text: &str) -> Vec<Frame> {
        let (id, refusal) = match Request::parse(text) {
            Ok(Request::Subscribe(request)) => {
                let id = request.id.clone();
                let format = Format::Message { id: id.clone() };
                match Box::pin(self.session.subscribe(format, request)).await {
                    Ok(frame) => return vec![frame],
                    Err(refusal) => (Some(id), refusal),
                }
            }
            Ok(Request::Unsubscribe(named)) => match self.session.unsubscribe(&named.id) {
                Ok(frame) => return vec![frame],
                Err(refusal) => (Some(named.id), refusal),
            },
            Ok(Request::Ack(ack)) => match self.session.ack(&ack) {
                Ok(()) => return Vec::new(),
                Err(refusal) => (Some(ack.id), refusal),
            },
            Ok(Request::Ping {}) => return vec![Frame::plain("{\"type\":\"pong\"}".to_owned())],
            Err(refusal) => (None, refusal),
        };
        vec![refused(id.as_deref(), &refusal)]
    }
}

fn refused(id: Option<&str>, refusal: &Refusal) -> Frame {
    Frame::plain(error_message(id, refusal))
}

/// What a client did wrong that ends its connection; none: the connection is broken.
fn fault(error: &axum::Error) -> Option<Fault> {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(error) = inner.downcast_ref::<tungstenite::Error>() {
            return match error {
                tungstenite::Error::Capacity(_) => Some(Fault::TooLarge),
                tungstenite::Error::Utf8(_) => Some(Fault::NoText),
                tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => None,
                tungstenite::Error::Protocol(_) => Some(Fault::Protocol),
                _ => None,
            };
        }
        source = inner.source();
    }
    None
}
