//! What an answer of JetStream, or an error of the server or of its client, means for a delivery. Pure.

use std::{error::Error, io};

use async_nats::{ConnectError, ConnectErrorKind, StatusCode, client::PublishErrorKind};
use serde::Deserialize;

use crate::{
    delivery::{Outcome, Reason},
    sink::Report,
};

pub(super) fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// No connection was made, or it was refused.
pub(super) fn unconnected(error: &ConnectError) -> Report {
    let mut causes = std::iter::successors(error.source(), |&cause| cause.source());
    // The cause of an error of TLS is inside an error of input and output, which does not name it as its source.
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
    retry(reason).saying(error)
}

/// The client did not take it.
pub(super) fn unpublished(error: &async_nats::PublishError) -> Report {
    match error.kind() {
        PublishErrorKind::MaxPayloadExceeded => {
            Report::from(Outcome::Rejected { reason: Reason::BodyTooLarge }).saying(error)
        }
        PublishErrorKind::InvalidSubject => {
            Report::from(Outcome::Rejected { reason: Reason::TemplateFailed }).saying(error)
        }
        PublishErrorKind::Send => retry(Reason::BrokenAnswer).saying("the connection was lost"),
    }
}

#[derive(Deserialize)]
struct Answer {
    error: Option<Failure>,
    seq: Option<u64>,
}

#[derive(Deserialize)]
struct Failure {
    code: u16,
    #[serde(default)]
    err_code: u32,
    #[serde(default)]
    description: String,
}

/// The answer to one message. That the stream had it already is as good as having it now.
pub(super) fn report(answer: &async_nats::Message, subject: &str) -> Report {
    if answer.status == Some(StatusCode::NO_RESPONDERS) {
        return retry(Reason::TargetMissing).saying(format!("no stream takes the subject {subject}"));
    }
    match serde_json::from_slice(&answer.payload) {
        Ok(Answer { error: Some(failure), .. }) => failed(&failure),
        Ok(Answer { seq: Some(_), .. }) => Outcome::Delivered.into(),
        // Somebody who is not JetStream listens to the subject and answers.
        _ => retry(Reason::BrokenAnswer).saying("the answer is not that of a stream").ambiguous(),
    }
}

/// By the numbers of the server's `errors.json`.
fn failed(failure: &Failure) -> Report {
    let Failure { code, err_code, description } = failure;
    let outcome = match err_code {
        // The message is larger than the stream allows.
        10_054 => Outcome::Rejected { reason: Reason::BodyTooLarge },
        // The stream has as much as it may have and discards new messages; the account or the server has no room.
        10_023 | 10_028 | 10_047 | 10_077 => Outcome::Retry { reason: Reason::DestinationFull, after: None },
        // Another stream than the expected one, none, or no JetStream for this account.
        10_039 | 10_059 | 10_060 | 10_076 => Outcome::Retry { reason: Reason::TargetMissing, after: None },
        _ if matches!(code, 401 | 403) => Outcome::Retry { reason: Reason::AccessDenied, after: None },
        _ => Outcome::Retry { reason: Reason::Refused, after: None },
    };
    Report { status: Some(*code), ..outcome.into() }.saying(format!("{description} ({err_code})"))
}

/// Whether a list of streams says that one takes the subject.
pub(super) fn is_taken(list: &[u8], subject: &str, expected: Option<&str>) -> Result<(), String> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        streams: Option<Vec<String>>,
        error: Option<Failure>,
    }
    let list: List =
        serde_json::from_slice(list).map_err(|_| "the answer is not that of JetStream".to_owned())?;
    match (list.error, list.streams.unwrap_or_default().first(), expected) {
        (Some(failure), ..) => Err(failure.description),
        (None, None, _) => Err(format!("no stream takes the subject {subject}")),
        (None, Some(stream), Some(expected)) if stream != expected => {
            Err(format!("the subject {subject} is taken by the stream {stream}, not by {expected}"))
        }
        _ => Ok(()),
    }
}
