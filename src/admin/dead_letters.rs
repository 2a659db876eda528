//! Dead letters: which are meant, and what an operator does with them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{FromRow, postgres::PgRow};
use uuid::Uuid;

use super::{Error, Operator, ask};

/// A delivery that was given up, without the event's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
pub struct DeadLetter {
    /// Its number.
    pub id: i64,
    /// When it was given up.
    pub died_at: DateTime<Utc>,
    /// To whom it was owed.
    pub subscription: String,
    /// The code that `pgoutbox explain` explains.
    pub reason: String,
    /// The destination's last status.
    pub status: Option<i32>,
    /// The beginning of its last answer, escaped.
    pub answer: Option<String>,
    /// How often it was tried.
    pub attempts: i32,
    /// The event's public id.
    pub event_id: Uuid,
    /// The event's topic.
    pub topic: String,
    /// What the event is about.
    pub key: Option<String>,
    /// The tenant.
    pub organization: Option<String>,
}

/// Which dead letters are meant; empty: all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Those of one subscription.
    pub subscription: Option<String>,
    /// Those whose topic matches a pattern.
    pub topic: Option<String>,
    /// Those whose reason, answer or status is LIKE this.
    pub error_like: Option<String>,
    /// Those given up at this instant or later.
    pub since: Option<DateTime<Utc>>,
}

/// How many dead letters match a [`DeadLetterFilter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, FromRow)]
pub struct DeadLetterCount {
    /// All of them.
    pub matching: i64,
    /// Those whose subscription still exists, so that they can be owed again.
    pub redrivable: i64,
}

impl Operator {
    /// Dead letters, the newest first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<Vec<DeadLetter>, Error> {
        let query = filter.bind(sqlx::query_as(sql!("admin/list_dead_letters"))).bind(i64::from(max_rows));
        ask("listing dead letters", query.fetch_all(&mut self.connection)).await
    }

    /// How many dead letters match.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_dead_letters(&mut self, filter: &DeadLetterFilter) -> Result<DeadLetterCount, Error> {
        ask(
            "counting dead letters",
            filter.bind(sqlx::query_as(sql!("admin/count_dead_letters"))).fetch_one(&mut self.connection),
        )
        .await
    }

    /// One dead letter with everything it holds, the payload among it, as PostgreSQL writes it.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn show_dead_letter(&mut self, id: i64) -> Result<Option<Box<RawValue>>, Error> {
        let query = sqlx::query_scalar::<_, String>(sql!("admin/show_dead_letter")).bind(id);
        let text = ask("reading a dead letter", query.fetch_optional(&mut self.connection)).await?;
        Ok(text.map(|text| RawValue::from_string(text).expect("PostgreSQL writes valid JSON")))
    }

    /// Owes matching dead letters again, oldest first. Returns how many; fewer than `max_rows` means that none is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription, or `max_rows` is not 1 to 100000.
    pub async fn redrive_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<i64, Error> {
        let query =
            filter.bind(sqlx::query_as::<_, (i64,)>(sql!("admin/redrive_dead_letters"))).bind(max_rows);
        Ok(ask("redriving dead letters", query.fetch_one(&mut self.connection)).await?.0)
    }

    /// Deletes matching dead letters for good, oldest first. Returns how many; fewer than `max_rows` means that none is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when `max_rows` is not 1 to 100000.
    pub async fn discard_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<i64, Error> {
        let query =
            filter.bind(sqlx::query_as::<_, (i64,)>(sql!("admin/discard_dead_letters"))).bind(max_rows);
        Ok(ask("discarding dead letters", query.fetch_one(&mut self.connection)).await?.0)
    }
}

type Query<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, sqlx::postgres::PgArguments>;

impl DeadLetterFilter {
    /// Binds $1 to $4, the same in every statement about dead letters.
    fn bind<'q, T: for<'r> FromRow<'r, PgRow>>(&'q self, query: Query<'q, T>) -> Query<'q, T> {
        query.bind(&self.subscription).bind(&self.topic).bind(&self.error_like).bind(self.since)
    }
}
