//! What an error of Redis or of its client means for a delivery. Pure.

use std::{error::Error as _, io, sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError};

use crate::{
    delivery::{Outcome, Reason},
    sink::Report,
};

/// No connection was made, or it was refused.
pub(super) fn unconnected(error: &RedisError) -> Report {
    if error.code().is_some() || error.kind() == ErrorKind::AuthenticationFailed {
        return refused(error);
    }
    let said = text(error);
    let reason = if is_tls(error) {
        Reason::TlsFailed
    } else if said.contains("lookup address") {
        Reason::DnsFailed
    } else {
        Reason::ConnectFailed
    };
    retry(reason).saying(said)
}

/// The server refused one entry: nothing was added.
pub(super) fn refused(error: &RedisError) -> Report {
    let reason = match error.code() {
        Some("OOM") => Reason::DestinationFull,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Reason::AccessDenied,
        None if error.kind() == ErrorKind::AuthenticationFailed => Reason::AccessDenied,
        // WRONGTYPE, READONLY, LOADING, MISCONF, MOVED, CLUSTERDOWN, …: whatever it is, it was not added and may be later.
        _ => Reason::Refused,
    };
    retry(reason).saying(text(error))
}

/// No answer came: whether the entries were added is not known.
pub(super) fn lost(error: &RedisError, timeout: Duration) -> Report {
    if error.is_timeout() {
        retry(Reason::Timeout)
            .saying(format!("no answer within {}", crate::delivery::duration::format(timeout)))
            .ambiguous()
    } else {
        retry(Reason::BrokenAnswer).saying(text(error)).ambiguous()
    }
}

/// Whether another connection may lead to a server that does better, or has other rights.
pub(super) fn ends_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH"))
}

/// As the server says it: `WRONGTYPE Operation against a key …`.
pub(super) fn text(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ => error.to_string(),
    }
}

fn retry(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

fn is_tls(error: &RedisError) -> bool {
    let cause =
        error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn std::error::Error + Send + Sync>>());
    let io = cause.and_then(|cause| cause.downcast_ref::<io::Error>());
    io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
}
