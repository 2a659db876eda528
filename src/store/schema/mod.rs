//! Migrations, embedded in the binary: applies the missing ones, and finds out whether a database fits this
//! binary.

mod apply;
mod error;
mod history;
mod rights;
mod script;

use sqlx::migrate::{Migration, Migrator};

pub use self::{
    apply::run,
    error::Error,
    history::{Status, pending, status},
    script::script,
};
pub(super) use self::{history::missing_rows, rights::lacking};

/// Table of the migrations that were applied.
const HISTORY: &str = "outbox.migrations";

/// The migrations of this binary, in order.
fn migrations() -> Migrator {
    sqlx::migrate!()
}

/// Number of the newest migration of this binary.
#[must_use]
pub fn newest() -> i64 {
    migrations().iter().map(|migration| migration.version).max().unwrap_or(0)
}

/// Name of a migration, such as `0001_events`.
fn name(migration: &Migration) -> String {
    format!("{:04}_{}", migration.version, migration.description.replace(' ', "_"))
}
