//! Applies migrations, each in a transaction that also records it: a process that is killed leaves a
//! migration applied or not at all, and the next run goes on behind it.
//!
//! Processes take turns, migration by migration, through an advisory lock of the transaction, which a pooler
//! knows too. A migration waits a tenth of a second for the lock of a table, because publishers wait behind
//! it; then it rolls back, pauses and tries again.

use std::time::{Duration, Instant};

use sqlx::{
    Connection as _, Executor as _, PgConnection,
    migrate::{MigrateError, Migration},
    postgres::PgConnectOptions,
};

use super::{
    Error,
    history::{Applied, applied, missing_rows, pending, refuse_newer},
    migrations, name, newest,
    script::CREATE_HISTORY,
};
use crate::sink::{
    session,
    sqlstate::{Class, class_of},
};

/// Settings of the connection that migrates, in addition to those of all sessions.
const SETTINGS: &[(&str, &str)] = &[
    ("statement_timeout", "0"),
    ("lock_timeout", "100ms"),
    ("idle_in_transaction_session_timeout", "0"),
    ("search_path", "pg_catalog,pg_temp"),
];

/// Key of the advisory lock of whoever applies a migration: `pgoutbox`.
const TURN: i64 = 0x7067_6f75_7462_6f78;

/// Longest time for which one migration is tried while others hold the locks that it needs.
const LONGEST_LOCKED: Duration = Duration::from_secs(60);

/// Longest time in which another process applies migrations and this one gets no turn.
const LONGEST_TURN: Duration = Duration::from_secs(600);

/// What one transaction did.
enum Step {
    /// The history of a schema that was restored without its rows was written, or the schema was created.
    Begun,
    /// Applied this migration.
    Applied(String),
    /// Nothing is missing any more; made these rows.
    Complete(Vec<String>),
    /// Another process is migrating.
    OthersTurn,
    /// Another transaction holds a lock that this migration needs.
    Locked(String),
}

/// Applies the missing migrations, each in a transaction of its own, and returns the names of those that this
/// call applied. Any number of processes may run it at once: they take turns.
///
/// # Errors
/// When the database cannot be reached, a migration fails or gets no locks, or the database was migrated by a
/// newer version.
pub async fn run(options: &PgConnectOptions) -> Result<Vec<String>, Error> {
    let options = options.clone().options(session::SETTINGS.iter().chain(SETTINGS).copied());
    let mut connection = session::connect(&options, false).await.map_err(Error::connect)?;
    // Says what a login lacks, before anything is written.
    pending(&mut connection).await?;
    let mut done = Vec::new();
    let mut since = Instant::now();
    loop {
        match step(&mut connection).await? {
            Step::Begun => since = Instant::now(),
            Step::Applied(migration) => {
                done.push(migration);
                since = Instant::now();
            }
            Step::Complete(rows) => {
                done.extend(rows);
                break;
            }
            Step::OthersTurn if since.elapsed() > LONGEST_TURN => {
                return Err(Error::OthersTurn { waited: since.elapsed() });
            }
            Step::Locked(migration) if since.elapsed() > LONGEST_LOCKED => {
                let holders = holders(&mut connection).await.map_err(Error::read)?;
                return Err(Error::Locked { migration, holders, waited: since.elapsed() });
            }
            Step::OthersTurn | Step::Locked(_) => pause().await,
        }
    }
    // Everything is committed, whether or not the connection closes well.
    let _ = connection.close().await;
    Ok(done)
}

/// A time that is long for publishers behind a lock and short for an operator. By chance, so that twenty
/// processes do not ask at once.
async fn pause() {
    let pause = Duration::from_millis(rand::random_range(50..150));
    let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
}

/// Applies the first migration that is missing.
async fn step(connection: &mut PgConnection) -> Result<Step, Error> {
    let mut transaction = connection.begin_with(session::BEGIN).await.map_err(Error::read)?;
    let is_our_turn = sqlx::query_scalar::<_, bool>("select pg_try_advisory_xact_lock($1)").persistent(false);
    if !is_our_turn.bind(TURN).fetch_one(&mut *transaction).await.map_err(Error::read)? {
        transaction.rollback().await.map_err(Error::read)?;
        return Ok(Step::OthersTurn);
    }
    let history = applied(&mut transaction).await?;
    let version = history.last().map_or(0, |last| last.version);
    refuse_newer(&mut transaction, version).await?;
    if version > newest() {
        // What its schema needs, the newer program knows.
        return Ok(Step::Complete(Vec::new()));
    }
    refuse_changed(&history)?;
    let migrations = migrations();
    let is_applied = |migration: &Migration| history.iter().any(|one| one.version == migration.version);
    let step = match migrations.iter().find(|migration| !is_applied(migration)) {
        Some(_) if history.is_empty() && is_whole(&mut transaction).await? => {
            restore(&mut transaction).await?;
            Step::Begun
        }
        Some(migration) => match apply(&mut transaction, migration).await {
            Ok(()) => Step::Applied(name(migration)),
            Err(error) if is_locked(&error) => {
                transaction.rollback().await.map_err(Error::read)?;
                return Ok(Step::Locked(name(migration)));
            }
            Err(error) => return Err(Error::apply(error, migration.version)),
        },
        None => {
            let missing = missing_rows(&mut transaction).await.map_err(Error::restore)?;
            if !missing.is_empty() {
                transaction.execute(sql!("migrate/make_missing_rows")).await.map_err(Error::restore)?;
            }
            Step::Complete(missing)
        }
    };
    transaction.commit().await.map_err(Error::read)?;
    Ok(step)
}

/// Refuses migrations that are recorded with another text than this binary has.
fn refuse_changed(history: &[Applied]) -> Result<(), Error> {
    let migrations = migrations();
    let changed = migrations.iter().find(|migration| {
        let recorded = history.iter().find(|one| one.version == migration.version);
        recorded.is_some_and(|one| one.checksum != *migration.checksum)
    });
    changed.map_or(Ok(()), |changed| Err(Error::Apply(MigrateError::VersionMismatch(changed.version))))
}

/// Applies a migration and records it.
async fn apply(connection: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    // Whoever owns the schema need not be allowed to create others.
    let exist = "select to_regnamespace('outbox') is not null, to_regclass('outbox.migrations') is not null";
    let (schema, history): (bool, bool) =
        sqlx::query_as(exist).persistent(false).fetch_one(&mut *connection).await?;
    if !schema {
        connection.execute("create schema outbox").await?;
    }
    if !history {
        connection.execute(CREATE_HISTORY).await?;
    }
    connection.execute(sqlx::raw_sql(migration.sql.clone())).await?;
    record(connection, migration).await
}

async fn record(connection: &mut PgConnection, migration: &Migration) -> Result<(), sqlx::Error> {
    sqlx::query(sql!("migrate/record_migration"))
        .persistent(false)
        .bind(migration.version)
        .bind(&*migration.description)
        .bind(&*migration.checksum)
        .execute(connection)
        .await
        .map(drop)
}

/// Whether a lock was not had in time, or two transactions waited for each other.
fn is_locked(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|answer| answer.code());
    class_of(error) == Some(Class::Locked) || code.as_deref() == Some("40P01")
}

/// Whose transactions hold locks in the schema, as the rest of a sentence.
async fn holders(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let holders: Vec<String> =
        sqlx::query_scalar(sql!("migrate/list_holders")).persistent(false).fetch_all(connection).await?;
    Ok(if holders.is_empty() { String::new() } else { format!(", which are held by {}", holders.join(", ")) })
}

/// Whether all that the migrations create is there, though no migration is recorded: the schema was restored
/// without its rows.
async fn is_whole(connection: &mut PgConnection) -> Result<bool, Error> {
    let (mut tables, mut functions) = (Vec::new(), Vec::new());
    for migration in migrations().iter() {
        created(migration.sql.as_str(), &["table", "view"], &mut tables);
        created(migration.sql.as_str(), &["function"], &mut functions);
    }
    sqlx::query_scalar(sql!("migrate/is_whole"))
        .persistent(false)
        .bind(&tables)
        .bind(&functions)
        .fetch_one(connection)
        .await
        .map_err(Error::restore)
}

/// Records all migrations.
async fn restore(connection: &mut PgConnection) -> Result<(), Error> {
    for migration in migrations().iter() {
        record(connection, migration).await.map_err(Error::restore)?;
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
