//! Turns answers of JetStream and errors of server and client into reports. Pure.

use std::{error::Error, io};

use async_nats::{ConnectError, ConnectErrorKind, StatusCode, client::PublishErrorKind};
use serde::Deserialize;

use crate::{
    delivery::{Outcome, Reason},
    sink::{Report, shortage},
};

pub(super) fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// The report when no connection was made.
pub(super) fn unconnected(error: &ConnectError) -> Report {
    if let Some(lack) = shortage::of(error) {
        return shortage::report(lack);
    }
    // Of the server, or of the account: other clients use them up.
    let text = error.to_string().to_ascii_lowercase();
    if text.contains("maximum connections exceeded") || text.contains("maximum account active connections") {
        return shortage::report(error);
    }
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    // An I/O error wraps a TLS error without naming it as its source.
    let tls = |cause: &(dyn Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
            .is_some_and(|inner| inner.is::<rustls::Error>())
    };
    let reason = match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Reason::AccessDenied,
        ConnectErrorKind::Dns => Reason::DnsFailed,
        ConnectErrorKind::Tls => Reason::TlsFailed,
        _ if causes.any(tls) => Reason::TlsFailed,
        _ => Reason::ConnectFailed,
    };
    retry(reason).with_answer(error)
}

/// The report when the client refused a message.
pub(super) fn unpublished(error: &async_nats::PublishError) -> Report {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Report::from(Outcome::Rejected { reason: Reason::BodyTooLarge }).with_answer(error)
        }
        PublishErrorKind::InvalidSubject => {
            Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).with_answer(error)
        }
        PublishErrorKind::Send => retry(Reason::BrokenAnswer).with_answer("the connection was lost"),
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<Failure>,
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
}

#[derive(Deserialize)]
struct Failure {
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// The report for the answer to one message; none if it is not JetStream's. Subscribers see the subject for
/// replies too, and may answer first. A duplicate in the stream counts as delivered.
pub(super) fn report(answer: &async_nats::Message, subject: &str) -> Option<Report> {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        let missing = retry(Reason::TargetMissing);
        return Some(missing.with_answer(format!("no stream listens on the subject {subject}")));
    }
    match serde_json::from_slice(&answer.payload).ok()? {
        // Servers before 2.3 name the stream, and no `err_code`.
        Answer { error: Some(failure), stream, .. } if failure.err_code > 0 || !stream.is_empty() => {
            Some(failed(&failure))
        }
        Answer { error: None, stream, seq } if !stream.is_empty() && seq > 0 => {
            Some(Outcome::Delivered.into())
        }
        Answer { .. } => None,
    }
}

/// The report for an error, by the codes of the server's `errors.json`.
fn failed(failure: &Failure) -> Report {
    let Failure { code, err_code, description } = failure;
    let outcome = match err_code {
        // The message is larger than the stream allows.
        10_054 => Outcome::Rejected { reason: Reason::BodyTooLarge },
        // The stream is full and discards new messages, or the account or server has no space.
        10_023 | 10_028 | 10_047 | 10_077 => Outcome::Retry { reason: Reason::DestinationFull, after: None },
        // Not the expected stream, no stream, or no JetStream for this account.
        10_039 | 10_059 | 10_060 | 10_076 => Outcome::Retry { reason: Reason::TargetMissing, after: None },
        _ if matches!(code, 401 | 403) => Outcome::Retry { reason: Reason::AccessDenied, after: None },
        _ => Outcome::Retry { reason: Reason::Refused, after: None },
    };
    Report { status: Some(*code), ..outcome.into() }.with_answer(format!("{description} ({err_code})"))
}

/// Checks that a list of streams contains one for the subject. Returns its name.
pub(super) fn check_streams(list: &[u8], subject: &str, expected: Option<&str>) -> Result<String, String> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        streams: Option<Vec<String>>,
        error: Option<Failure>,
    }
    let list: List =
        serde_json::from_slice(list).map_err(|_| "the answer is not from JetStream".to_owned())?;
    match (list.error, list.streams.unwrap_or_default().into_iter().next(), expected) {
        (Some(failure), ..) => Err(failure.description),
        (None, None, _) => Err(format!("no stream listens on the subject {subject}")),
        (None, Some(stream), Some(expected)) if stream != expected => {
            Err(format!("the subject {subject} belongs to the stream {stream}, not to {expected}"))
        }
        (None, Some(stream), _) => Ok(stream),
    }
}

/// Checks that a stream acknowledges what it stores, as far as its description can be read.
pub(super) fn check_acknowledges(description: &[u8], stream: &str) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Description {
        config: Option<Config>,
    }
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        no_ack: bool,
        #[serde(default)]
        sealed: bool,
    }
    let description: Option<Description> = serde_json::from_slice(description).ok();
    match description.and_then(|description| description.config) {
        Some(Config { no_ack: true, .. }) => Err(format!(
            "the stream {stream} has no_ack: it acknowledges nothing, so that no event can count as \
             delivered; make it with no_ack = false"
        )),
        Some(Config { sealed: true, .. }) => Err(format!("the stream {stream} is sealed and takes nothing")),
        _ => Ok(()),
    }
}
