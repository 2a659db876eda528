//! Why an operation failed, from the driver's error.

use sqlx::postgres::PgDatabaseError;

use super::{
    adopt::READING_IDENTITY,
    audit::LISTING_AUDIT,
    publish::PUBLISHING,
    status::{LISTING_RELAYS, READING_LOG, READING_STATUS},
    wait::WAITING,
};
use crate::sink::{
    plain::plain,
    sqlstate::{self, Class},
};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection, or it was lost.
    #[error("{doing}: the database cannot be reached")]
    Unreachable {
        /// The operation, such as `listing relays`.
        doing: &'static str,
        /// Error of the driver.
        source: sqlx::Error,
    },
    /// There is no schema `outbox`, or an older one.
    #[error("outbox is not migrated: run `pgoutbox migrate`")]
    NotMigrated,
    /// The login lacks rights.
    #[error("{message} ({hint})")]
    Denied {
        /// PostgreSQL's message.
        message: String,
        /// What gives the rights.
        hint: String,
    },
    /// PostgreSQL refused the input: a malformed topic, an unknown subscription.
    #[error("{message}{}", hint.as_deref().map(|hint| format!(" ({hint})")).unwrap_or_default())]
    Refused {
        /// PostgreSQL's message, which names the field.
        message: String,
        /// PostgreSQL's hint.
        hint: Option<String>,
        /// SQLSTATE, such as `22023`.
        code: String,
    },
    /// Any other error.
    #[error("{doing}")]
    Failed {
        /// The operation, such as `listing relays`.
        doing: &'static str,
        /// Error of the driver.
        source: sqlx::Error,
    },
}

/// What an error asks of the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Another login, or more rights for this one.
    Rights,
    /// `pgoutbox migrate`.
    Migration,
    /// Other input.
    Input,
    /// Input that does not contradict what is there.
    Conflict,
    /// To try again soon: somebody else has locked a row.
    Locked,
    /// To try again, or to ask for less: the statement took too long.
    Late,
    /// To try again later: the database is away, or cannot be written.
    Away,
    /// To look at the cause.
    Unexpected,
}

impl Error {
    /// What it asks of the caller.
    #[must_use]
    pub fn why(&self) -> Why {
        match self {
            Self::Unreachable { .. } => Why::Away,
            Self::NotMigrated => Why::Migration,
            Self::Denied { .. } => Why::Rights,
            Self::Refused { code, .. } if code == "23505" => Why::Conflict,
            Self::Refused { .. } => Why::Input,
            Self::Failed { source, .. } => match sqlstate::class_of(source) {
                Some(Class::Locked) => Why::Locked,
                Some(Class::Canceled) => Why::Late,
                Some(Class::ReadOnly) => Why::Away,
                _ => Why::Unexpected,
            },
        }
    }

    /// Classifies an error of the driver.
    #[must_use]
    pub fn of(doing: &'static str, source: sqlx::Error) -> Self {
        let source = plain(source);
        if is_unreachable(&source) {
            return Self::Unreachable { doing, source };
        }
        let Some(answer) =
            source.as_database_error().and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        else {
            return Self::Failed { doing, source };
        };
        match sqlstate::class(answer.code()) {
            // Every statement names only tables and functions of the schema `outbox`.
            Class::Missing => Self::NotMigrated,
            Class::Refused => {
                let (message, hint) = (refusal(answer), answer.hint().map(ToOwned::to_owned));
                Self::Refused { message, hint, code: answer.code().to_owned() }
            }
            Class::NoRights => Self::Denied {
                message: refusal(answer),
                hint: answer.hint().map_or_else(|| lacking(doing), ToOwned::to_owned),
            },
            _ => Self::Failed { doing, source },
        }
    }
}

/// Whether the database refuses the login, or the login lacks rights.
#[must_use]
pub fn is_denied(error: &sqlx::Error) -> bool {
    matches!(sqlstate::class_of(error), Some(Class::NoRights | Class::LoginRefused))
}

/// Whether the database did not answer, or is starting up or shutting down.
#[must_use]
pub fn is_unreachable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(_) => {
            let unreachable = [Class::Unavailable, Class::LoginRefused, Class::NoDatabase, Class::Busy];
            sqlstate::class_of(error).is_some_and(|class| unreachable.contains(&class))
        }
        _ => false,
    }
}

/// Which group a login needs for an operation.
fn lacking(doing: &str) -> String {
    let group = match doing {
        PUBLISHING | WAITING => "outbox_publisher",
        READING_IDENTITY | READING_STATUS | READING_LOG | LISTING_RELAYS | LISTING_AUDIT => "outbox_monitor",
        _ => "outbox_admin",
    };
    format!(
        "{doing} needs a login that inherits the rights of {group}; let the owner of the outbox run \
         `grant {group} to …`"
    )
}

/// The message of a refusal. Constraints are named after their rule; PostgreSQL's own message would print the
/// whole row.
fn refusal(answer: &PgDatabaseError) -> String {
    match answer.constraint() {
        Some(constraint) if answer.code() == "23514" => constraint.replace('_', " "),
        _ => answer.message().to_owned(),
    }
}
