//! Why a database could not be migrated, or does not fit this binary.

use std::time::Duration;

use sqlx::migrate::MigrateError;

use crate::sink::plain::plain;

/// Why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("connecting to the database")]
    Connect(#[source] sqlx::Error),
    /// A migration failed and was rolled back; those before it stay applied.
    #[error("applying migrations")]
    Apply(#[source] MigrateError),
    /// Other transactions kept the locks that a migration needs. It was rolled back; those before it stay
    /// applied.
    #[error(
        "{migration} did not get its locks within {} s{holders}; nothing of it was applied, and those before it \
         were. Run it again when those transactions have ended", waited.as_secs()
    )]
    Locked {
        /// Name of the migration, such as `0001_events`.
        migration: String,
        /// Whose transactions these are, as the rest of a sentence, or nothing.
        holders: String,
        /// How long it was tried.
        waited: Duration,
    },
    /// Another process has been applying one migration for very long.
    #[error("another process has been migrating this database for {} s", waited.as_secs())]
    OthersTurn {
        /// How long this one has waited.
        waited: Duration,
    },
    /// The database was migrated by a newer version of this program, with which this one does not fit.
    #[error(
        "the database was migrated by a newer version (migration {version}); install that version, this one changes nothing"
    )]
    Newer {
        /// The newest migration that was applied.
        version: i64,
    },
    /// There is a schema `outbox` that this program did not make.
    #[error(
        "the schema outbox is not pgoutbox's: it holds {holds} and no migrations of pgoutbox. Nothing was \
         changed. Rename it (`alter schema outbox rename to …`), or use another database"
    )]
    Foreign {
        /// Something in it.
        holds: String,
    },
    /// The login lacks rights.
    #[error("{0}")]
    Rights(String),
    /// Rows that were missing could not be made.
    #[error("making the rows that are missing")]
    Restore(#[source] sqlx::Error),
    /// The table of applied migrations could not be read.
    #[error("reading which migrations were applied")]
    Read(#[source] sqlx::Error),
}

impl Error {
    pub(crate) fn connect(error: sqlx::Error) -> Self {
        Self::Connect(plain(error))
    }

    pub(super) fn read(error: sqlx::Error) -> Self {
        Self::Read(plain(error))
    }

    pub(super) fn restore(error: sqlx::Error) -> Self {
        Self::Restore(plain(error))
    }

    pub(super) fn apply(error: sqlx::Error, version: i64) -> Self {
        Self::Apply(MigrateError::ExecuteMigration(plain(error), version))
    }
}
