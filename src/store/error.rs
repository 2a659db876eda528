//! Errors between the relay and its database.

use crate::sink::{
    plain::plain,
    sqlstate::{Class, class, class_of},
};

/// An error of the relay's database. Its text says what the relay was doing; the cause is its source.
#[derive(Debug)]
pub struct Error {
    doing: &'static str,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    Deadline(Deadline),
    Database(sqlx::Error),
    /// The server has no connection left for this login.
    Crowded(Crowded),
    Unsuitable(Unsuitable),
    /// The outbox does not belong to this database, or the database was set back.
    Fenced(Unsuitable),
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {0} s")]
struct Deadline(u64);

/// How many connections a relay wants; the server's own words are its source.
#[derive(Debug, thiserror::Error)]
#[error("the server has no connection left, and a relay wants {wants}")]
struct Crowded {
    wants: String,
    source: sqlx::Error,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unsuitable(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.doing)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(match &self.cause {
            Cause::Deadline(cause) => cause,
            Cause::Database(cause) => cause,
            Cause::Crowded(cause) => cause,
            Cause::Unsuitable(cause) | Cause::Fenced(cause) => cause,
        })
    }
}

/// What the relay does about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The connection or its server failed: the relay replaces all connections and tries again.
    Connection,
    /// The relay tries again: deadlock, lock timeout, disk full, too many connections.
    Transient,
    /// A person must act: the schema is missing, the login lacks rights or is a superuser.
    Unsuitable,
}

impl Error {
    pub(super) fn deadline(doing: &'static str, seconds: u64) -> Self {
        Self { doing, cause: Cause::Deadline(Deadline(seconds)) }
    }

    /// The server has no connection left. `wants`: how many a relay takes.
    pub(crate) fn crowded(doing: &'static str, error: sqlx::Error, wants: String) -> Self {
        Self { doing, cause: Cause::Crowded(Crowded { wants, source: plain(error) }) }
    }

    pub(super) fn unsuitable(doing: &'static str, why: impl Into<String>) -> Self {
        Self { doing, cause: Cause::Unsuitable(Unsuitable(why.into())) }
    }

    pub(super) fn fenced(doing: &'static str, why: impl Into<String>) -> Self {
        Self { doing, cause: Cause::Fenced(Unsuitable(why.into())) }
    }

    /// Whether nothing may be sent until an operator adopts the database.
    pub(crate) fn is_fenced(&self) -> bool {
        matches!(self.cause, Cause::Fenced(_))
    }

    pub(super) fn database(doing: &'static str, error: sqlx::Error) -> Self {
        Self { doing, cause: Cause::Database(plain(error)) }
    }

    /// The class of the error, if it is one of the server.
    pub(crate) fn class(&self) -> Option<Class> {
        match &self.cause {
            Cause::Database(error) => class_of(error),
            Cause::Crowded(_) => Some(Class::Busy),
            Cause::Deadline(_) | Cause::Unsuitable(_) | Cause::Fenced(_) => None,
        }
    }

    /// Whether a value that was to be read may be the cause.
    pub(crate) fn is_about_a_value(&self) -> bool {
        let Cause::Database(error) = &self.cause else { return false };
        let answer = error.as_database_error();
        answer
            .and_then(sqlx::error::DatabaseError::code)
            .is_some_and(|code| code.starts_with("22") || class(&code) == Class::Unreadable)
    }

    /// Whether less should be asked for the next time: a value cannot be read, or it took too long.
    pub(crate) fn asks_for_less(&self) -> bool {
        self.is_about_a_value() || self.class() == Some(Class::Canceled)
    }

    /// What the relay does about it, decided from the cause alone.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match &self.cause {
            Cause::Deadline(_) => Kind::Connection,
            Cause::Unsuitable(_) | Cause::Fenced(_) => Kind::Unsuitable,
            Cause::Crowded(_) => Kind::Transient,
            Cause::Database(sqlx::Error::Database(error)) => {
                kind_of_sqlstate(error.code().as_deref().unwrap_or(""))
            }
            Cause::Database(_) => Kind::Connection,
        }
    }
}

/// What the relay does about an error with this SQLSTATE.
fn kind_of_sqlstate(code: &str) -> Kind {
    match class(code) {
        Class::Unavailable | Class::ReadOnly => Kind::Connection,
        Class::Missing | Class::NoRights | Class::LoginRefused | Class::NoDatabase => Kind::Unsuitable,
        Class::Busy
        | Class::Full
        | Class::Canceled
        | Class::Refused
        | Class::Locked
        | Class::Unreadable
        | Class::Other => Kind::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_flip_and_a_shutdown_make_every_connection_suspect() {
        for code in ["25006", "57P01", "57P02", "57P03", "08006"] {
            assert_eq!(kind_of_sqlstate(code), Kind::Connection, "{code}");
        }
    }

    #[test]
    fn locks_deadlocks_and_full_disks_are_waited_out() {
        for code in ["40P01", "40001", "55P03", "53100", "53300", "57014"] {
            assert_eq!(kind_of_sqlstate(code), Kind::Transient, "{code}");
        }
    }

    #[test]
    fn a_missing_table_or_right_needs_a_person() {
        for code in ["42P01", "42501", "28P01"] {
            assert_eq!(kind_of_sqlstate(code), Kind::Unsuitable, "{code}");
        }
    }
}
