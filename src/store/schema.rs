//! Migrations, embedded in the binary: applies the missing ones, and finds out whether a database fits this
//! binary.

use sqlx::{
    Connection, PgConnection,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
};

use crate::sink::{plain::plain, session};

/// Table of the migrations that were applied.
const HISTORY: &str = "outbox.migrations";

/// Settings of the connection that migrates, in addition to those of all sessions.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("search_path", "pg_catalog,pg_temp"),
];

/// Why a database could not be migrated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection failed.
    #[error("connecting to the database")]
    Connect(#[source] sqlx::Error),
    /// A migration failed and was rolled back; those before it stay applied.
    #[error("applying migrations")]
    Apply(#[source] MigrateError),
    /// The database was migrated by a newer version of this program.
    #[error(
        "the database was migrated by a newer version (migration {version}); install that version, this one changes nothing"
    )]
    Newer {
        /// The newest migration that was applied.
        version: i64,
    },
    /// The table of applied migrations could not be read.
    #[error("reading which migrations were applied")]
    Read(#[source] sqlx::Error),
}

impl Error {
    pub(crate) fn connect(error: sqlx::Error) -> Self {
        Self::Connect(plain(error))
    }

    fn apply(error: MigrateError) -> Self {
        Self::Apply(match error {
            MigrateError::Execute(error) => MigrateError::Execute(plain(error)),
            MigrateError::ExecuteMigration(error, version) => {
                MigrateError::ExecuteMigration(plain(error), version)
            }
            other => other,
        })
    }
}

fn migrator() -> Migrator {
    let mut migrator = sqlx::migrate!();
    migrator.create_schema("outbox");
    migrator.dangerous_set_table_name(HISTORY);
    migrator
}

/// Applies the missing migrations, each in a transaction of its own, and returns their names. Several
/// processes may run it at once: they take turns.
///
/// # Errors
/// When the database cannot be reached, a migration fails, or the database was migrated by a newer version.
pub async fn run(options: &PgConnectOptions) -> Result<Vec<String>, Error> {
    let options = options.clone().options(session::SETTINGS.iter().chain(SETTINGS).copied());
    let mut connection = session::connect(&options, false).await.map_err(Error::connect)?;
    let missing = pending(&mut connection).await?;
    migrator().run(&mut connection).await.map_err(Error::apply)?;
    // Everything is committed, whether or not the connection closes well.
    let _ = connection.close().await;
    Ok(missing)
}

/// Names of the missing migrations, such as `0001_events`, in order.
///
/// # Errors
/// When the database cannot be read or was migrated by a newer version.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let migrator = migrator();
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    let migrated: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(HISTORY)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| Error::Read(plain(error)))?;
    let applied: Vec<i64> = if migrated {
        sqlx::query_scalar("select version from outbox.migrations where success order by version")
            .fetch_all(&mut *connection)
            .await
            .map_err(|error| Error::Read(plain(error)))?
    } else {
        Vec::new()
    };
    if let Some(&version) = applied.last().filter(|&&version| version > known) {
        return Err(Error::Newer { version });
    }
    Ok(migrator
        .iter()
        .filter(|migration| !applied.contains(&migration.version))
        .map(|migration| format!("{:04}_{}", migration.version, migration.description.replace(' ', "_")))
        .collect())
}

/// All migrations as one SQL script, for those who apply them with another tool. It records them as [`run`]
/// does.
#[must_use]
pub fn script() -> String {
    let mut script = format!(
        "create schema if not exists outbox;\n\
         create table if not exists {HISTORY} (version bigint primary key, description text not null, \
         installed_on timestamptz not null default now(), success boolean not null, checksum bytea not null, execution_time bigint not null);\n"
    );
    for migration in migrator().iter() {
        let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        script.push_str(&format!(
            "\n-- {:04}_{}\n{}\ninsert into {HISTORY} (version, description, success, checksum, execution_time) values ({}, '{}', true, decode('{checksum}', 'hex'), 0);\n",
            migration.version,
            migration.description.replace(' ', "_"),
            migration.sql.as_str(),
            migration.version,
            migration.description.replace('\'', "''"),
        ));
    }
    script
}
