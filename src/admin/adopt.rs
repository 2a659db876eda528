//! Takes a copy of the outbox into use, and says whether this is one.

use std::time::Duration;

use sqlx::FromRow;

use super::statement::{rows, statement};
use super::{Error, Operator, late};
use crate::store;

pub(super) const READING_IDENTITY: &str = "reading which database this is";

/// Longest time for [`Operator::adopt`]: it may write every event of the log.
const ADOPT: Duration = Duration::from_secs(6 * 3_600);

/// What a copy of the outbox held that its original had not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromRow)]
pub struct Adopted {
    /// Events that were not routed.
    pub events: i64,
    /// Deliveries that waited.
    pub deliveries: i64,
}

impl Operator {
    /// Takes this database into use for an outbox that was copied to it, or that was set back. `keep`:
    /// whether what is pending is delivered from here. Nobody can publish while it runs.
    ///
    /// # Errors
    /// [`Error::Denied`] when the login may not, and those of the database: a lock timeout when a
    /// transaction that has published stays open for 10 s.
    pub async fn adopt(&mut self, keep: bool, environment: &str) -> Result<Adopted, Error> {
        let doing = "adopting the outbox";
        let adopting = async {
            statement("set statement_timeout = 0").execute(&mut self.connection).await?;
            let adopted = rows(sql!("admin/adopt")).bind(keep).bind(environment);
            adopted.fetch_one(&mut self.connection).await
        };
        match tokio::time::timeout(ADOPT, adopting).await {
            Ok(adopted) => adopted.map_err(|source| Error::of(doing, source)),
            Err(_) => Err(Error::Unreachable { doing, source: late(ADOPT) }),
        }
    }

    /// Whether no relay has run in this database yet.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn is_new(&mut self) -> Result<bool, Error> {
        super::ask(READING_IDENTITY, store::is_new(&mut self.connection)).await
    }

    /// Why relays of this environment send nothing from this database; none: they may send.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn fenced(&mut self, environment: &str) -> Result<Option<String>, Error> {
        super::ask(READING_IDENTITY, store::why_fenced(&mut self.connection, environment)).await
    }
}
