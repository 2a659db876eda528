//! What a connection of ours says about its session. Roles, databases and servers have settings of their own,
//! which must change nothing here: the relay, the command line and migrations state all that they need, and
//! functions and other databases, whose code may need the settings of its login, get a stated transaction.

use sqlx::{ConnectOptions as _, Executor as _, PgConnection, postgres::PgConnectOptions};

macro_rules! reset {
    () => {
        "reset session authorization; reset role; reset all; close all; unlisten *; discard temp; \
         discard sequences; select pg_advisory_unlock_all(); \
         select setseed(extract(microseconds from clock_timestamp())::double precision / 6e7)"
    };
}

/// Settings of every connection that runs only statements of ours.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    ("synchronous_commit", "on"),
    ("idle_session_timeout", "0"),
    ("standard_conforming_strings", "on"),
    ("array_nulls", "on"),
    ("transform_null_equals", "off"),
    ("quote_all_identifiers", "off"),
    ("row_security", "on"),
    ("bytea_output", "hex"),
    ("IntervalStyle", "postgres"),
];

/// Begins a transaction that may write and sees what others commit meanwhile, whatever the login's defaults
/// are: what it settles is renewed by others while it runs.
pub(crate) const BEGIN: &str = "begin isolation level read committed, read write, not deferrable";

/// Undoes all that a function or a trigger of an application can leave in a session. What `discard all` does,
/// but for cached plans, which hold no state, and with the seed of `random()`.
pub(crate) const RESET: &str = concat!(reset!(), "; deallocate all");

/// The same before the commit of a transaction, for a session that a pooler shares with others. It keeps
/// their prepared statements, and the commit is synchronous.
pub(crate) const RESET_SHARED: &str = concat!(reset!(), "; set local synchronous_commit = on");

/// Connects with the settings of these options, and adjusts the session. A `pooler` shares it with others,
/// so there it stays as it is.
pub(crate) async fn connect(options: &PgConnectOptions, pooler: bool) -> Result<PgConnection, sqlx::Error> {
    let mut connection = options.connect().await?;
    if !pooler {
        adjust(&mut connection).await?;
    }
    Ok(connection)
}

/// Sets what a start-up option cannot: a setting that older servers do not know, and one that is respected
/// when it is the whole server's.
pub(crate) async fn adjust(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(include_str!("session.sql")).await.map(drop)
}
