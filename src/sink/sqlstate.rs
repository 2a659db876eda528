//! What a SQLSTATE means, in one table for all who talk to a PostgreSQL: the relay, the command line, functions and inboxes.

/// What an error of PostgreSQL is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// The server is shutting down, crashed or starting, or ended this session.
    Unavailable,
    /// A standby, or a server that was made read-only.
    ReadOnly,
    /// No connection is free.
    Busy,
    /// Wrong password, or no such login.
    LoginRefused,
    /// No such database.
    NoDatabase,
    /// The login lacks a right.
    NoRights,
    /// No such schema, table, column or function.
    Missing,
    /// Disk or memory is full.
    Full,
    /// A limit for statements was reached, or somebody cancelled the statement.
    Canceled,
    /// A value or a constraint refuses it, or the feature is not there.
    Refused,
    /// Anything else: deadlocks, lock timeouts, errors of functions.
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

/// The class of an error that a server gave; `None` when it was no answer of a server.
pub(crate) fn class_of(error: &sqlx::Error) -> Option<Class> {
    error.as_database_error().map(|answer| class(answer.code().as_deref().unwrap_or_default()))
}
