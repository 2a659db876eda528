//! Whether a relay can work with a database.

use sqlx::FromRow;

use super::{connection::Store, error::Error, statement::by_name};

impl Store {
    /// Checks whether the relay can work with the database, and returns by how many seconds its clock is
    /// ahead of the clock of this machine.
    ///
    /// # Errors
    /// Says what is wrong with the database and what to do.
    pub async fn inspect(&self) -> Result<f64, Error> {
        const DOING: &str = "checking the database";
        let found: Inspection = self.statement(DOING, sql!("relay/inspect_connection")).row(by_name).await?;
        if let Some(problem) = found.problem(self.settings.allow_superuser) {
            return Err(Error::unsuitable(DOING, problem));
        }
        let ours = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        Ok(found.clock - ours)
    }
}

/// What a relay must know about a connection before it uses the database.
#[derive(Debug, FromRow)]
struct Inspection {
    in_recovery: bool,
    read_only: bool,
    superuser: bool,
    /// As in `server_version_num`: 140000 is PostgreSQL 14.
    server_version: i32,
    migrated: bool,
    /// Whether the login has the rights of `outbox_relay`; none when the schema is missing.
    permitted: Option<bool>,
    /// Seconds since 1970 by the database's clock.
    clock: f64,
}

impl Inspection {
    /// What makes the database unsuitable, and what to do about it.
    fn problem(&self, allow_superuser: bool) -> Option<&'static str> {
        if !self.migrated {
            return Some("schema outbox is missing or incomplete; run `pgoutbox migrate`");
        }
        if self.permitted == Some(false) {
            return Some(
                "the login may not route and deliver; make it a member of outbox_relay: `grant outbox_relay to …`",
            );
        }
        if self.in_recovery || self.read_only {
            return Some("the server is read-only (a standby?); point database.url at the primary");
        }
        if self.server_version < 140_000 {
            return Some("PostgreSQL 14 or newer is needed");
        }
        if self.superuser && !allow_superuser {
            return Some(
                "the login is a superuser; use a login that is a member of outbox_relay (`grant outbox_relay to …`), or set database.allow_superuser = true",
            );
        }
        None
    }
}
