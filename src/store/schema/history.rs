//! Which migrations a database has, and whether it fits this binary. Writes nothing.

use serde::Serialize;
use sqlx::{Connection, PgConnection};

use super::{Error, lacking, migrations, name, newest};
use crate::sink::sqlstate::{Class, class_of};

/// How far a database is migrated.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Number of the newest migration that was applied; 0: none was.
    pub applied: i64,
    /// Number of the newest migration of this binary.
    pub known: i64,
    /// Names of the missing migrations, such as `0001_events`, and of missing rows, in order.
    pub pending: Vec<String>,
}

/// A migration that was applied.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
}

/// Names of the missing migrations, such as `0001_events`, and of the missing rows, in order.
///
/// # Errors
/// When the database cannot be read, or was migrated by a newer version with which this one does not fit.
pub async fn pending(connection: &mut PgConnection) -> Result<Vec<String>, Error> {
    Ok(status(connection).await?.pending)
}

/// How far a database is migrated.
///
/// # Errors
/// Those of [`pending`].
pub async fn status(connection: &mut PgConnection) -> Result<Status, Error> {
    let versions: Vec<i64> = applied_or_rights(connection).await?.iter().map(|one| one.version).collect();
    let (applied, known) = (versions.last().copied().unwrap_or(0), newest());
    refuse_newer(connection, applied).await?;
    let mut pending: Vec<String> =
        migrations().iter().filter(|migration| !versions.contains(&migration.version)).map(name).collect();
    // What rows a newer schema needs, this binary does not know.
    if pending.is_empty() && applied == known {
        match missing_rows(connection).await {
            Ok(rows) => pending = rows,
            // Whoever may not read them does not need them.
            Err(error) if class_of(&error) == Some(Class::NoRights) => {}
            Err(error) => return Err(Error::read(error)),
        }
    }
    Ok(Status { applied, known, pending })
}

/// Refuses a schema that is newer than this binary, unless it says that programs of this age may use it.
pub(super) async fn refuse_newer(connection: &mut PgConnection, applied: i64) -> Result<(), Error> {
    let known = newest();
    let fits = applied <= known
        || oldest_program(connection).await.map_err(Error::read)?.is_some_and(|oldest| oldest <= known);
    if fits { Ok(()) } else { Err(Error::Newer { version: applied }) }
}

/// Newest migration of the oldest program that may use the schema; none: the schema does not say so.
async fn oldest_program(connection: &mut PgConnection) -> Result<Option<i64>, sqlx::Error> {
    let says = "select to_regclass('outbox.compatibility') is not null";
    if !sqlx::query_scalar::<_, bool>(says).persistent(false).fetch_one(&mut *connection).await? {
        return Ok(None);
    }
    let oldest = "select oldest_program from outbox.compatibility";
    sqlx::query_scalar(oldest).persistent(false).fetch_optional(connection).await
}

/// Rows without which no relay works and that the tables lack, such as `the row of outbox.cursor`.
///
/// # Errors
/// Those of the database.
pub(in crate::store) async fn missing_rows(
    connection: &mut PgConnection,
) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(sql!("migrate/find_missing_rows")).persistent(false).fetch_all(connection).await
}

/// The migrations that were applied, in order. A refusal ends the transaction in which it is asked.
///
/// # Errors
/// Also when there is a schema `outbox` of somebody else.
pub(super) async fn applied(connection: &mut PgConnection) -> Result<Vec<Applied>, Error> {
    if !is_ours(connection).await? {
        return Ok(Vec::new());
    }
    read(connection).await.map_err(Error::read)
}

/// The same, and a login without rights is told what it lacks.
async fn applied_or_rights(connection: &mut PgConnection) -> Result<Vec<Applied>, Error> {
    if !is_ours(connection).await? {
        return Ok(Vec::new());
    }
    // A refusal must not end a transaction in which the next question is asked.
    let mut asking = connection.begin().await.map_err(Error::read)?;
    let applied = read(&mut asking).await;
    asking.rollback().await.map_err(Error::read)?;
    match applied {
        Err(error) if class_of(&error) == Some(Class::NoRights) => {
            Err(Error::Rights(lacking(connection, "outbox_relay").await.map_err(Error::read)?))
        }
        applied => applied.map_err(Error::read),
    }
}

async fn read(connection: &mut PgConnection) -> Result<Vec<Applied>, sqlx::Error> {
    let versions = "select version, checksum from outbox.migrations where success order by version";
    sqlx::query_as(versions).persistent(false).fetch_all(connection).await
}

/// Whether migrations were applied; an error if the schema is somebody else's.
async fn is_ours(connection: &mut PgConnection) -> Result<bool, Error> {
    let (is_migrated, holds): (bool, Option<String>) = sqlx::query_as(sql!("relay/inspect_schema"))
        .persistent(false)
        .fetch_one(connection)
        .await
        .map_err(Error::read)?;
    match holds {
        Some(holds) if !is_migrated => Err(Error::Foreign { holds }),
        _ => Ok(is_migrated),
    }
}
