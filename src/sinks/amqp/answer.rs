//! Turns answers of an AMQP server, and missing ones, into reports. Pure.

use lapin::{Error, ErrorKind, protocol::AMQPError};

use crate::{
    delivery::{Outcome, Reason},
    sink::{Report, shortage},
};

// Reply codes of the protocol.
const CONNECTION_FORCED: u16 = 320;
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const RESOURCE_ERROR: u16 = 506;
const NOT_ALLOWED: u16 = 530;

/// The answer to one message.
#[derive(Debug)]
pub(super) enum Answer {
    /// The server confirmed the message; it may have returned it too.
    Acknowledged,
    /// The server refused the message (nack).
    Refused,
    /// The channel or the connection ended.
    Failed(Error),
    /// No answer came in time.
    None,
}

impl Answer {
    /// The error with which the server closed the channel or the connection.
    pub(super) fn server_error(&self) -> Option<&AMQPError> {
        match self {
            Self::Failed(error) => server_error(error),
            Self::Acknowledged | Self::Refused | Self::None => None,
        }
    }

    /// The report for a message of `bytes`. `closed` is the error that closed its channel, `alone`
    /// whether it was the only message on it, `blocked` whether the server accepts no messages.
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
                .with_answer("the server refused it (nack): a queue is full or its node failed"),
            (Self::None | Self::Failed(_), Some(closed)) => of_a_closed_channel(closed, alone, bytes),
            (Self::None, None) if blocked => self::blocked().ambiguous(),
            (Self::None, None) => retry(Reason::Timeout).with_answer("no confirmation in time").ambiguous(),
            (Self::Failed(error), None) => retry(Reason::BrokenAnswer).with_answer(text(error)).ambiguous(),
        }
    }
}

fn of_a_closed_channel(closed: &AMQPError, alone: bool, bytes: usize) -> Report {
    let report = |outcome: Outcome| Report::from(outcome).with_answer(closed.get_message());
    match closed.get_id() {
        // Nothing was stored: all messages are for the same exchange.
        NOT_FOUND => report(Outcome::Retry { reason: reason(closed), after: None }),
        // Permissions may depend on the routing key: messages before the refused one may have been
        // stored.
        ACCESS_REFUSED if alone => report(Outcome::Retry { reason: reason(closed), after: None }),
        PRECONDITION_FAILED if largest(closed).is_some_and(|largest| bytes > largest) => {
            report(Outcome::Rejected { reason: Reason::BodyTooLarge })
        }
        // The channel was closed because of another message, or of all: this one may have been stored
        // before.
        PRECONDITION_FAILED => {
            report(Outcome::Retry { reason: Reason::BrokenAnswer, after: None }).ambiguous()
        }
        _ => report(Outcome::Retry { reason: reason(closed), after: None }).ambiguous(),
    }
}

/// The limit in `message size 5000 is larger than configured max size 2000`: 2000.
fn largest(closed: &AMQPError) -> Option<usize> {
    let text = closed.get_message().as_str();
    text.contains("message size")
        .then(|| text.rsplit(|c: char| !c.is_ascii_digit()).find(|number| !number.is_empty()))??
        .parse()
        .ok()
}

/// The report when no connection or channel was opened: nothing was sent. `secure`: over TLS.
pub(super) fn unconnected(error: &Error, secure: bool) -> Report {
    if let Some(lack) = lack(error) {
        return shortage::report(lack);
    }
    let reason = match (server_error(error), error.kind()) {
        (Some(error), _) if error.get_id() == CONNECTION_FORCED => Reason::ConnectFailed,
        (Some(error), _) => reason(error),
        (None, ErrorKind::IOError(error)) if is_tls(error) => Reason::TlsFailed,
        (None, ErrorKind::IOError(error)) if error.to_string().contains("lookup address") => {
            Reason::DnsFailed
        }
        // With TLS 1.3 a server refuses the client's certificate after the handshake.
        (None, ErrorKind::IOError(io)) if secure && is_end(io) => {
            let hint = "a server that refuses the client's certificate closes the connection so";
            return retry(Reason::ConnectFailed).with_answer(format!("{}: {hint}", text(error)));
        }
        (None, _) => Reason::ConnectFailed,
    };
    retry(reason).with_answer(text(error))
}

/// What this machine or the server gives no more of: descriptors, channels of a connection, connections or
/// channels of a user, of a virtual host or of the node.
pub(super) fn lack(error: &Error) -> Option<String> {
    match error.kind() {
        ErrorKind::ChannelsLimitReached => Some("all channels of the connection are in use".to_owned()),
        ErrorKind::IOError(error) => shortage::of_system(error).map(str::to_owned),
        ErrorKind::ProtocolError(error) if error.get_id() == NOT_ALLOWED => {
            let text = error.get_message().as_str();
            (text.contains("limit") && text.contains("reached")).then(|| text.to_owned())
        }
        _ => None,
    }
}

/// The report while the server has an alarm and accepts no messages.
pub(super) fn blocked() -> Report {
    retry(Reason::DestinationFull).with_answer("the server blocks publishers: it has a memory or disk alarm")
}

pub(super) fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// The message of the server, or else of the library.
pub(super) fn text(error: &Error) -> String {
    server_error(error).map_or_else(|| error.to_string(), |error| error.get_message().to_string())
}

fn server_error(error: &Error) -> Option<&AMQPError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => Some(error),
        _ => None,
    }
}

fn reason(error: &AMQPError) -> Reason {
    match error.get_id() {
        NOT_FOUND => Reason::TargetMissing,
        ACCESS_REFUSED => Reason::AccessDenied,
        // The virtual host does not exist, or the user has no access to it.
        NOT_ALLOWED if error.get_message().as_str().contains("not found") => Reason::TargetMissing,
        NOT_ALLOWED => Reason::AccessDenied,
        RESOURCE_ERROR => Reason::DestinationFull,
        CONNECTION_FORCED => Reason::BrokenAnswer,
        _ => Reason::Refused,
    }
}

fn is_end(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

fn is_tls(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>())
}
