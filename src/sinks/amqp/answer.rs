//! What the words of an AMQP server, and its silence, mean for a delivery. Pure.

use lapin::{Error, ErrorKind, protocol::AMQPError};

use crate::{
    delivery::{Outcome, Reason},
    sink::Report,
};

/// The protocol's codes.
const CONNECTION_FORCED: u16 = 320;
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const RESOURCE_ERROR: u16 = 506;
const NOT_ALLOWED: u16 = 530;

/// What was heard of one message.
#[derive(Debug)]
pub(super) enum Answer {
    /// The server has it, or gave it back.
    Acknowledged,
    /// The server did not take it.
    Refused,
    /// The channel or the connection ended.
    Failed(Error),
    /// Nothing in time.
    None,
}

impl Answer {
    /// What the server said when it closed the channel or the connection.
    pub(super) fn reason_of_the_server(&self) -> Option<&AMQPError> {
        match self {
            Self::Failed(error) => said(error),
            Self::Acknowledged | Self::Refused | Self::None => None,
        }
    }

    /// The report on a message of `bytes`. `closed`: why its channel was closed. `alone`: nothing else was published on it.
    /// `blocked`: the server takes nothing.
    pub(super) fn report(
        &self,
        closed: Option<&AMQPError>,
        alone: bool,
        bytes: usize,
        blocked: bool,
    ) -> Report {
        match (self, closed) {
            (Self::Acknowledged, _) => Outcome::Delivered.into(),
            (Self::Refused, _) => retry(Reason::DestinationFull)
                .saying("the server did not take it (nack): a queue is full, or its node fails"),
            (Self::None | Self::Failed(_), Some(closed)) => of_a_closed_channel(closed, alone, bytes),
            (Self::None, None) if blocked => self::blocked().ambiguous(),
            (Self::None, None) => retry(Reason::Timeout).saying("no confirmation in time").ambiguous(),
            (Self::Failed(error), None) => retry(Reason::BrokenAnswer).saying(text(error)).ambiguous(),
        }
    }
}

fn of_a_closed_channel(closed: &AMQPError, alone: bool, bytes: usize) -> Report {
    let report = |outcome: Outcome| Report::from(outcome).saying(closed.get_message());
    match closed.get_id() {
        // Nothing was stored: the exchange is that of all messages.
        NOT_FOUND => report(Outcome::Retry { reason: reason(closed), after: None }),
        // Rights may be given by routing key: what came before the one that is refused may have been stored.
        ACCESS_REFUSED if alone => report(Outcome::Retry { reason: reason(closed), after: None }),
        PRECONDITION_FAILED if largest(closed).is_some_and(|largest| bytes > largest) => {
            report(Outcome::Rejected { reason: Reason::BodyTooLarge })
        }
        // Closed over another message, or for all: this one may have been stored before.
        PRECONDITION_FAILED => {
            report(Outcome::Retry { reason: Reason::BrokenAnswer, after: None }).ambiguous()
        }
        _ => report(Outcome::Retry { reason: reason(closed), after: None }).ambiguous(),
    }
}

/// Of `message size 5000 is larger than configured max size 2000` it is 2000.
fn largest(closed: &AMQPError) -> Option<usize> {
    let words = closed.get_message().as_str();
    words
        .contains("message size")
        .then(|| words.rsplit(|c: char| !c.is_ascii_digit()).find(|number| !number.is_empty()))??
        .parse()
        .ok()
}

/// No connection or channel was made, or it was refused: nothing was sent.
pub(super) fn unconnected(error: &Error) -> Report {
    let reason = match (said(error), error.kind()) {
        (Some(said), _) if said.get_id() == CONNECTION_FORCED => Reason::ConnectFailed,
        (Some(said), _) => reason(said),
        (None, ErrorKind::IOError(error)) if is_tls(error) => Reason::TlsFailed,
        (None, ErrorKind::IOError(error)) if error.to_string().contains("lookup address") => {
            Reason::DnsFailed
        }
        (None, _) => Reason::ConnectFailed,
    };
    retry(reason).saying(text(error))
}

/// The server has an alarm and reads nothing from those who publish.
pub(super) fn blocked() -> Report {
    retry(Reason::DestinationFull)
        .saying("the server blocks whoever publishes: it has an alarm for memory or disk")
}

pub(super) fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// As the server says it, or else the library.
pub(super) fn text(error: &Error) -> String {
    said(error).map_or_else(|| error.to_string(), |said| said.get_message().to_string())
}

fn said(error: &Error) -> Option<&AMQPError> {
    match error.kind() {
        ErrorKind::ProtocolError(said) => Some(said),
        _ => None,
    }
}

fn reason(said: &AMQPError) -> Reason {
    match said.get_id() {
        NOT_FOUND => Reason::TargetMissing,
        ACCESS_REFUSED => Reason::AccessDenied,
        // A virtual host: missing, or not for this user.
        NOT_ALLOWED if said.get_message().as_str().contains("not found") => Reason::TargetMissing,
        NOT_ALLOWED => Reason::AccessDenied,
        RESOURCE_ERROR => Reason::DestinationFull,
        CONNECTION_FORCED => Reason::BrokenAnswer,
        _ => Reason::Refused,
    }
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
