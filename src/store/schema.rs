//! Migrations, embedded in the binary: applies the missing ones, and finds out whether a database fits this
//! binary.

use sqlx::{
    Connection, PgConnection,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
};

use crate::sink::{
    plain::plain,
    session,
    sqlstate::{Class, class_of},
};

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
    restore_history(&mut connection).await?;
    let missing = pending(&mut connection).await?;
    migrator().run(&mut connection).await.map_err(Error::apply)?;
    sqlx::query(sql!("migrate/make_missing_rows"))
        .persistent(false)
        .execute(&mut connection)
        .await
        .map_err(|error| Error::Restore(plain(error)))?;
    // Everything is committed, whether or not the connection closes well.
    let _ = connection.close().await;
    Ok(missing)
}

/// Rows without which no relay works and that the tables lack, such as `the row of outbox.cursor`.
///
/// # Errors
/// Those of the database.
pub(super) async fn missing_rows(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(sql!("migrate/find_missing_rows")).persistent(false).fetch_all(connection).await
}

/// Records which migrations were applied, where a whole schema was restored without its rows.
async fn restore_history(connection: &mut PgConnection) -> Result<(), Error> {
    if !applied(connection).await?.is_empty() {
        return Ok(());
    }
    let (mut tables, mut functions) = (Vec::new(), Vec::new());
    for migration in migrator().iter() {
        created(migration.sql.as_str(), &["table", "view"], &mut tables);
        created(migration.sql.as_str(), &["function"], &mut functions);
    }
    let is_whole: bool = sqlx::query_scalar(sql!("migrate/is_whole"))
        .persistent(false)
        .bind(&tables)
        .bind(&functions)
        .fetch_one(&mut *connection)
        .await
        .map_err(|error| Error::Restore(plain(error)))?;
    if !is_whole {
        return Ok(());
    }
    for migration in migrator().iter() {
        sqlx::query(sql!("migrate/record_migration"))
            .persistent(false)
            .bind(migration.version)
            .bind(&*migration.description)
            .bind(&*migration.checksum)
            .execute(&mut *connection)
            .await
            .map_err(|error| Error::Restore(plain(error)))?;
    }
    Ok(())
}

/// Names of the objects of these kinds that a migration creates in our schemas.
fn created(migration: &str, kinds: &[&str], names: &mut Vec<String>) {
    for line in migration.lines() {
        let line = line.strip_prefix("create ").unwrap_or_default();
        let line = line.strip_prefix("or replace ").unwrap_or(line);
        let Some((kind, name)) = line.split_once(" outbox") else { continue };
        let Some(name) = name.strip_prefix("_internal").unwrap_or(name).strip_prefix('.') else { continue };
        if kinds.contains(&kind) {
            let end = name.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(name.len());
            names.extend(name.get(..end).map(ToOwned::to_owned));
        }
    }
}

/// Names of the missing migrations, such as `0001_events`, and of the missing rows, in order.
///
/// # Errors
/// When the database cannot be read or was migrated by a newer version.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    let migrator = migrator();
    let known = migrator.iter().map(|migration| migration.version).max().unwrap_or(0);
    let read = |error| Error::Read(plain(error));
    let applied = applied(connection).await?;
    if let Some(&version) = applied.last().filter(|&&version| version > known) {
        return Err(Error::Newer { version });
    }
    let mut missing: Vec<String> = migrator
        .iter()
        .filter(|migration| !applied.contains(&migration.version))
        .map(|migration| format!("{:04}_{}", migration.version, migration.description.replace(' ', "_")))
        .collect();
    if missing.is_empty() {
        match missing_rows(connection).await {
            Ok(rows) => missing = rows,
            // Whoever may not read them does not need them.
            Err(error) if class_of(&error) == Some(Class::NoRights) => {}
            Err(error) => return Err(read(error)),
        }
    }
    Ok(missing)
}

/// Versions of the migrations that were applied, in order.
async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
    let read = |error| Error::Read(plain(error));
    let (is_migrated, holds): (bool, Option<String>) = sqlx::query_as(sql!("relay/inspect_schema"))
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .map_err(read)?;
    match (is_migrated, holds) {
        (true, _) => {
            let versions = "select version from outbox.migrations where success order by version";
            // A refusal must not end a transaction in which the next question is asked.
            let mut asking = connection.begin().await.map_err(read)?;
            let applied = sqlx::query_scalar(versions).persistent(false).fetch_all(&mut *asking).await;
            asking.rollback().await.map_err(read)?;
            match applied {
                Err(error) if class_of(&error) == Some(Class::NoRights) => {
                    Err(Error::Rights(lacking(connection, "outbox_relay").await.map_err(read)?))
                }
                applied => applied.map_err(read),
            }
        }
        (false, Some(holds)) => Err(Error::Foreign { holds }),
        (false, None) => Ok(Vec::new()),
    }
}

/// What a login that lacks rights needs: the group, and the statement that gives it.
///
/// # Errors
/// Those of the database.
pub(super) async fn lacking(connection: &mut PgConnection, group: &str) -> Result<String, sqlx::Error> {
    let (login, is_member, version): (String, Option<bool>, i32) =
        sqlx::query_as(sql!("relay/inspect_login"))
            .persistent(false)
            .bind(group)
            .fetch_one(connection)
            .await?;
    Ok(match is_member {
        None => format!(
            "the role {group} does not exist; create it, let the owner of the outbox run \
             `select outbox.grant_roles()`, and run `grant {group} to {login}`"
        ),
        Some(false) => format!("the login {login} is no member of {group}; run `grant {group} to {login}`"),
        Some(true) if version >= 160_000 => format!(
            "the login {login} is a member of {group} and does not inherit its rights; \
             run `grant {group} to {login} with inherit true`"
        ),
        Some(true) => format!(
            "the login {login} is a member of {group} and does not inherit its rights; \
             run `alter role {login} inherit`"
        ),
    })
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
