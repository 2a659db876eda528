//! Classifies SQLSTATEs, in one table for everything that uses PostgreSQL: relay, command line, functions and
//! inboxes.

/// Class of an error of PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The server is shutting down, has crashed, is starting, or ended this session.
    Unavailable,
    /// The server is a standby or read-only.
    ReadOnly,
    /// No connection slot is free.
    Busy,
    /// Wrong password or unknown login.
    LoginRefused,
    /// Unknown database.
    NoDatabase,
    /// The login lacks a privilege.
    NoRights,
    /// Unknown schema, table, column or function.
    Missing,
    /// Disk or memory is full.
    Full,
    /// The statement reached its timeout or was cancelled.
    Canceled,
    /// A value or constraint was refused, or the feature is not supported.
    Refused,
    /// A lock was not released in time.
    Locked,
    /// A stored value cannot be read: it is too long as text, or damaged.
    Unreadable,
    /// Anything else: deadlocks, errors of functions.
    Other,
}

/// The class of a SQLSTATE.
pub(crate) fn class(code: &str) -> Class {
    match code {
        "25006" => Class::ReadOnly,
        "53300" => Class::Busy,
        "3D000" => Class::NoDatabase,
        "42501" => Class::NoRights,
        "3F000" | "42P01" | "42703" | "42883" => Class::Missing,
        "53100" | "53200" => Class::Full,
        "55P03" => Class::Locked,
        "54000" | "XX000" | "XX001" | "XX002" => Class::Unreadable,
        "57014" => Class::Canceled,
        _ => match code.get(..2) {
            Some("08") => Class::Unavailable,
            Some("57") if code.starts_with("57P") => Class::Unavailable,
            Some("28") => Class::LoginRefused,
            Some("22" | "23" | "0A") => Class::Refused,
            _ => Class::Other,
        },
    }
}

/// The class of an error of the server; none if the error did not come from a server.
pub(crate) fn class_of(error: &sqlx::Error) -> Option<Class> {
    error.as_database_error().map(|answer| class(answer.code().as_deref().unwrap_or_default()))
}
