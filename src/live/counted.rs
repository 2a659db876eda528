//! A client among the connected ones, and why it was sent away.

use std::sync::Arc;

use super::{selection::Frame, session::Ended};
use crate::relay::telemetry::Telemetry;

/// How a client is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// WebSocket.
    WebSocket,
    /// Server-sent events.
    Stream,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::Stream => "stream",
        }
    }
}

/// Why a client is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// It has nothing more to get.
    Ended(Ended),
    /// Its token has expired.
    Expired,
    /// It broke the protocol.
    Refused(Fault),
}

/// What a client did wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A message is too large.
    TooLarge,
    /// A text is not UTF-8.
    NoText,
    /// A frame breaks RFC 6455.
    Protocol,
}

/// Counts a client as connected, as long as it lives, and what it is sent.
#[derive(Debug)]
pub(super) struct Counted {
    telemetry: Arc<Telemetry>,
    transport: Transport,
}

impl Counted {
    pub(super) fn new(telemetry: Arc<Telemetry>, transport: Transport) -> Self {
        telemetry.live_connected(transport.name());
        Self { telemetry, transport }
    }

    /// These messages are handed to the connection.
    pub(super) fn sent(&self, frames: &[Frame]) {
        self.telemetry.live_sent(frames.iter().filter(|frame| frame.token.is_some()).count());
    }

    /// The connection is closed.
    pub(super) fn closed(&self, why: Closed) {
        self.telemetry.live_closed(match why {
            Closed::Ended(Ended::Lagged) => "lagged",
            Closed::Expired => "expired",
            Closed::Ended(Ended::Stopping) => "stopping",
            Closed::Ended(Ended::OtherDatabase) | Closed::Refused(_) => "other",
        });
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.telemetry.live_left(self.transport.name());
    }
}
