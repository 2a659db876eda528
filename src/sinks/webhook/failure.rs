//! Turns the error of an attempt without a readable response into a report: who failed, and whether the
//! receiver may have the event.

use std::{error::Error, io};

use rustls::AlertDescription;

use super::{
    answer::{escape, outcome},
    client::Failure,
    connect::ConnectError,
    target::Target,
};
use crate::{
    delivery::{Outcome, Reason},
    sink::{Report, egress::ResolveError, shortage},
};

/// The report for an attempt without a response that can be read. One whose headers are malformed has a
/// status, which decides.
pub(super) fn failure(error: &Failure, target: &Target) -> Report {
    if let Some(lack) = lacking(error) {
        return shortage::report(lack);
    }
    let (reason, doing) = classify(error);
    let cause = causes(error).last().map(ToString::to_string).unwrap_or_default();
    let answer = Some(escape(format!("{doing}: {cause}").as_bytes(), &target.confidential));
    if let Some(status) = error.status() {
        let outcome = match outcome(status, &target.dead_letter_on, || None) {
            // Which of its events were acknowledged is not known.
            Outcome::Delivered if target.batch.is_some() => Outcome::Retry { reason, after: None },
            outcome => outcome,
        };
        let ambiguous = status.is_server_error() || outcome.reason() == Some(Reason::BrokenAnswer);
        return Report { outcome, status: Some(status.as_u16()), answer, ambiguous, settled: false };
    }
    let ambiguous = match reason {
        Reason::Timeout | Reason::BrokenAnswer => true,
        Reason::TlsFailed => causes(error).any(is_late),
        _ => false,
    };
    Report {
        outcome: Outcome::Retry { reason, after: None },
        status: None,
        answer,
        ambiguous,
        settled: false,
    }
}

/// What this machine lacks for a connection; nothing of the request was sent.
fn lacking(error: &Failure) -> Option<String> {
    let is_before = matches!(error, Failure::Request(error) if error.is_connect());
    if !is_before {
        return None;
    }
    causes(error).find_map(|cause| match (cause.downcast_ref(), cause.downcast_ref()) {
        (Some(ResolveError::NoResolver), _) => Some(cause.to_string()),
        (_, Some(ConnectError::NoRoom)) => Some(cause.to_string()),
        _ => cause.downcast_ref().and_then(shortage::of_system).map(str::to_owned),
    })
}

/// Whether an error of TLS may have come after the request was read.
fn is_late(cause: &(dyn Error + 'static)) -> bool {
    match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::AlertReceived(alert)) => !refuses_the_handshake(*alert),
        _ => false,
    }
}

/// Whether a peer sends this alert instead of reading a request. In TLS 1.3 it comes after the handshake has
/// ended for the client.
fn refuses_the_handshake(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::HandshakeFailure
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::ProtocolVersion
            | Alert::InsufficientSecurity
            | Alert::MissingExtension
            | Alert::CertificateRequired
            | Alert::UnrecognisedName
            | Alert::UnknownPSKIdentity
            | Alert::NoApplicationProtocol
    )
}

/// Why there was no response, and during which step. Before a connection exists, no byte of the request was
/// sent.
fn classify(error: &Failure) -> (Reason, &'static str) {
    for cause in causes(error) {
        if let Some(problem) = cause.downcast_ref::<ResolveError>() {
            let is_forbidden = matches!(problem, ResolveError::Forbidden);
            let reason = if is_forbidden { Reason::ForbiddenAddress } else { Reason::DnsFailed };
            return (reason, "resolving the name");
        }
        match cause.downcast_ref::<ConnectError>() {
            Some(ConnectError::Tls(_)) => return (Reason::TlsFailed, "TLS handshake"),
            Some(ConnectError::Proxy(_)) => return (Reason::ProxyFailed, "connecting to egress.proxy"),
            Some(ConnectError::Refused(_)) => return (Reason::ProxyFailed, "asking for a tunnel"),
            Some(ConnectError::TimedOut | ConnectError::NoRoom) => {
                return (Reason::ConnectFailed, "connecting");
            }
            Some(ConnectError::Tcp(_)) | None => {}
        }
        match cause.downcast_ref::<rustls::Error>() {
            Some(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)) => {
                return (Reason::TlsFailed, "the server asks for a client certificate");
            }
            Some(rustls::Error::AlertReceived(_)) => return (Reason::TlsFailed, "TLS handshake"),
            Some(_) | None => {}
        }
    }
    match error {
        Failure::TimedOut => (Reason::Timeout, "waiting for the response"),
        Failure::Request(error) if error.is_connect() => (Reason::ConnectFailed, "connecting"),
        Failure::Request(_) | Failure::Body(_) => (Reason::BrokenAnswer, "reading the response"),
    }
}

/// An error and its causes. An I/O error does not return the error it wraps as its source, so that is
/// unwrapped here.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&cause| {
        match cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => cause.source(),
        }
    })
}
