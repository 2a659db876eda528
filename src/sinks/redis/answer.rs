//! Turns errors of Redis and its client into reports. Pure.

use std::{error::Error, io, sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError};

use crate::{
    delivery::{Outcome, Reason},
    sink::{Report, shortage},
};

/// The report when no connection was made.
pub(super) fn unconnected(error: &RedisError) -> Report {
    if let Some(lack) = shortage::of(cause(error)) {
        return shortage::report(lack);
    }
    // `maxclients` of the server, which its other clients use up.
    if error.to_string().contains("max number of clients reached") {
        return shortage::report(text(error));
    }
    if error.code().is_some() || error.kind() == ErrorKind::AuthenticationFailed {
        return refused(error);
    }
    let message = text(error);
    let reason = if is_tls(error) {
        Reason::TlsFailed
    } else if message.contains("lookup address") {
        Reason::DnsFailed
    } else {
        Reason::ConnectFailed
    };
    retry(reason).with_answer(message)
}

/// The report for an entry that the server refused.
pub(super) fn refused(error: &RedisError) -> Report {
    let reason = match error.code() {
        Some("OOM") => Reason::DestinationFull,
        Some("NOAUTH" | "WRONGPASS" | "NOPERM") => Reason::AccessDenied,
        None if error.kind() == ErrorKind::AuthenticationFailed => Reason::AccessDenied,
        // WRONGTYPE, READONLY, LOADING, MISCONF, MOVED, CLUSTERDOWN, …: not added, but may be later.
        _ => Reason::Refused,
    };
    retry(reason).with_answer(text(error))
}

/// The report when no answer came: it is unknown whether the entries were added.
pub(super) fn lost(error: &RedisError, timeout: Duration) -> Report {
    if error.is_timeout() {
        retry(Reason::Timeout)
            .with_answer(format!("no answer within {}", crate::delivery::duration::format(timeout)))
            .ambiguous()
    } else {
        retry(Reason::BrokenAnswer).with_answer(text(error)).ambiguous()
    }
}

/// Whether to reconnect: another connection may reach a better server or have other permissions.
pub(super) fn ends_the_connection(error: &RedisError) -> bool {
    error.is_io_error()
        || matches!(error.code(), Some("READONLY" | "LOADING" | "MASTERDOWN" | "CLUSTERDOWN" | "NOAUTH"))
}

/// The message of the server, such as `WRONGTYPE Operation against a key …`.
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

/// The error that the client wraps.
fn cause(error: &RedisError) -> &(dyn Error + 'static) {
    let wrapped = error.source().and_then(|cause| cause.downcast_ref::<Arc<dyn Error + Send + Sync>>());
    wrapped.map_or(error as &(dyn Error + 'static), |wrapped| &**wrapped)
}

fn is_tls(error: &RedisError) -> bool {
    let io = cause(error).downcast_ref::<io::Error>();
    io.and_then(io::Error::get_ref).is_some_and(|inner| inner.is::<rustls::Error>())
}
