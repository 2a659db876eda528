//! Whether a relay can work with a database.

use sqlx::{Connection as _, FromRow, PgConnection};

use super::{
    connection::Store,
    error::Error,
    identity::{self, Found, Seen, Standing, Trip},
    schema,
    statement::by_name,
};
use crate::sink::session;

const DOING: &str = "checking the database";

impl Store {
    /// Checks whether the relay can work with the database, and returns by how many seconds its clock is
    /// ahead of the clock of this machine. Records which database the outbox belongs to, if none is recorded.
    ///
    /// # Errors
    /// Says what is wrong with the database and what to do. [`Error::is_fenced`] when the outbox belongs to
    /// another database, or this one was set back.
    pub async fn inspect(&self) -> Result<f64, Error> {
        let seen = self.guard.seen_so_far();
        let (found, identity) = self
            .limited_in_time(DOING, async {
                if !self.guard.is_tripped()
                    && let Ok(mut session) = self.session(None).await
                {
                    let found = self.look(session.connection()).await?;
                    session.finish().await?;
                    return Ok(found);
                }
                let mut connection = Box::pin(self.connect_alone()).await?;
                let found = self.look(&mut connection).await?;
                // Everything was read.
                let _ = connection.close().await;
                Ok(found)
            })
            .await?;
        if let Some(problem) = found.problem(self.settings.allow_superuser) {
            return Err(Error::unsuitable(DOING, problem));
        }
        if let Some(problem) = found.lack() {
            return Err(Error::unsuitable(DOING, problem));
        }
        if let Some(identity) = identity {
            self.recognize(&identity, &seen).await?;
        }
        let ours = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        Ok(found.clock - ours)
    }

    /// Like [`Store::inspect`], for a relay that begins anew: what it saw before is forgotten.
    ///
    /// # Errors
    /// Those of [`Store::inspect`].
    pub async fn inspect_anew(&self) -> Result<f64, Error> {
        if let Some(Trip::SetBack(lacks)) = self.guard.trip() {
            let seconds = lacks.as_secs();
            tracing::warn!(
                seconds,
                "the database lacks the last commits (a standby was promoted, or it was restored): beginning anew"
            );
            if let Some(why) = identity::set_back(lacks) {
                self.record_identity(Some(&why)).await?;
            }
        }
        self.guard.forget();
        self.unreadable.forget();
        self.inspect().await
    }

    async fn look(&self, connection: &mut PgConnection) -> Result<(Inspection, Option<Found>), sqlx::Error> {
        let found = Inspection::of(connection, self.settings.allow_superuser).await?;
        let can_read = found.problem(self.settings.allow_superuser).is_none() && found.lack().is_none();
        let identity = if can_read { Some(Found::read(connection, self.relay()).await?) } else { None };
        Ok((found, identity))
    }

    async fn recognize(&self, found: &Found, seen: &Seen) -> Result<(), Error> {
        let standing = self.guard.judge(found, seen);
        if self.guard.is_tripped() {
            return Err(self.tripped_while(DOING));
        }
        match standing {
            Standing::Promoted | Standing::New => {}
            Standing::Known | Standing::SetBack(_) | Standing::Foreign(_) => return Ok(()),
        }
        self.record_identity(None).await
    }

    async fn record_identity(&self, set_back: Option<&str>) -> Result<(), Error> {
        self.limited_in_time("recording the identity of the database", async {
            let mut connection = Box::pin(self.connect_alone()).await?;
            let mut transaction = connection.begin_with(session::BEGIN).await?;
            let query = sqlx::query(sql!("relay/record_identity")).persistent(false);
            query.bind(self.guard.environment()).bind(set_back).execute(&mut *transaction).await?;
            transaction.commit().await?;
            // It is committed.
            let _ = connection.close().await;
            Ok(())
        })
        .await
    }
}

/// What makes a database unsuitable for a relay with this login, and what to do about it.
///
/// # Errors
/// Those of the database.
pub async fn unsuitable(
    connection: &mut PgConnection,
    allow_superuser: bool,
) -> Result<Option<String>, sqlx::Error> {
    let found = Inspection::of(connection, allow_superuser).await?;
    Ok(found.problem(allow_superuser).map(str::to_owned).or_else(|| found.lack()))
}

/// Captured tables with a problem, and the problem.
///
/// # Errors
/// Those of the database.
pub async fn capture_problems(connection: &mut PgConnection) -> Result<Vec<(String, String)>, sqlx::Error> {
    sqlx::query_as(sql!("admin/list_capture_problems")).persistent(false).fetch_all(connection).await
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
    /// Which right it lacks, if any, and how to give it.
    #[sqlx(skip)]
    lacking: String,
    /// Whether the login may ask which cluster this is.
    may_identify: bool,
    /// Seconds since 1970 by the database's clock.
    clock: f64,
    /// Rows without which no relay works.
    #[sqlx(skip)]
    missing_rows: Vec<String>,
}

impl Inspection {
    async fn of(connection: &mut PgConnection, allow_superuser: bool) -> Result<Self, sqlx::Error> {
        let query = sqlx::query(sql!("relay/inspect_connection")).persistent(false);
        let mut found: Self = by_name(&query.fetch_one(&mut *connection).await?)?;
        if found.permitted == Some(false) {
            found.lacking = schema::lacking(connection, "outbox_relay").await?;
        } else if found.problem(allow_superuser).is_none() {
            found.missing_rows = schema::missing_rows(connection).await?;
        }
        Ok(found)
    }

    /// Which rows are missing, and what to do about it.
    fn lack(&self) -> Option<String> {
        let missing = self.missing_rows.join(", ");
        (!missing.is_empty()).then(|| {
            format!("missing: {missing} (restored without its rows, or truncated); run `pgoutbox migrate`")
        })
    }

    /// What makes the database unsuitable, and what to do about it.
    fn problem(&self, allow_superuser: bool) -> Option<&str> {
        if !self.migrated {
            return Some("schema outbox is missing or incomplete; run `pgoutbox migrate`");
        }
        if self.permitted == Some(false) {
            return Some(&self.lacking);
        }
        if !self.may_identify {
            return Some(
                "the login may not ask which cluster this is, by which a copy of the database is told from it; \
                 run `grant execute on function pg_control_system() to outbox_relay`",
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
