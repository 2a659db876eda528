//! Dead letters: filter, list, show, count, redrive and discard them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, postgres::PgRow};
use uuid::Uuid;

use super::statement::rows;
use super::{Error, Operator, ask};
use crate::event::JsonText;

/// A delivery that was given up. Does not include the event's payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct DeadLetter {
    /// Id of the dead letter.
    pub id: i64,
    /// Name of the subscription.
    pub subscription: String,
    /// Public id of the event; none if the event could not be read, so that it cannot be redriven.
    pub event_id: Option<Uuid>,
    /// Place of the event in the log.
    pub position: i64,
    /// Topic of the event.
    pub topic: String,
    /// Key of the event.
    pub key: Option<String>,
    /// Tenant of the event.
    pub organization: Option<String>,
    /// Time when it was given up.
    pub died_at: DateTime<Utc>,
    /// Number of attempts.
    pub attempts: i32,
    /// Stable code of the reason.
    pub reason: String,
    /// HTTP status of the last answer.
    pub status: Option<i32>,
    /// Beginning of the last answer, escaped.
    pub answer: Option<String>,
}

/// A dead letter with its event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct WholeDeadLetter {
    /// The dead letter.
    #[sqlx(flatten)]
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// Name of the application that published the event.
    pub source: Option<String>,
    /// User who caused it.
    pub user_id: Option<String>,
    /// Version of the payload's schema.
    pub schema_version: Option<i32>,
    /// Priority from 0 to 1000.
    pub priority: i32,
    /// Time of the insert, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Headers: an object of strings.
    #[sqlx(json)]
    pub headers: JsonText,
    /// Payload of the event: any JSON, of at most 256 KiB.
    #[sqlx(json)]
    pub payload: JsonText,
}

/// Dead letters of one subscription that were given up for the same reason with the same answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct DeadLetterGroup {
    /// Name of the subscription.
    pub subscription: String,
    /// Stable code of the reason.
    pub reason: String,
    /// HTTP status of the last answer.
    pub status: Option<i32>,
    /// Beginning of the last answer, escaped.
    pub answer: Option<String>,
    /// How many they are.
    pub dead_letters: i64,
    /// When the oldest was given up.
    pub oldest_at: DateTime<Utc>,
    /// When the newest was given up.
    pub newest_at: DateTime<Utc>,
    /// Id of the newest.
    pub newest_id: i64,
}

/// Selects dead letters; the default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadLetterFilter {
    /// Name of a subscription.
    pub subscription: Option<String>,
    /// Topic pattern.
    pub topic: Option<String>,
    /// LIKE pattern for the reason, the answer or the status.
    pub error_like: Option<String>,
    /// Earliest time when they were given up.
    pub since: Option<DateTime<Utc>>,
    /// Id of one dead letter.
    pub id: Option<i64>,
    /// Only those that were given up before this time.
    pub until: Option<DateTime<Utc>>,
}

/// Number of dead letters that match a [`DeadLetterFilter`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, FromRow)]
pub struct DeadLetterCount {
    /// All that match.
    pub matching: i64,
    /// Those that can be retried: their subscription exists, and their event could be read.
    pub redrivable: i64,
}

impl Operator {
    /// Lists matching dead letters, newest first; with `after` those that come after the one that was given
    /// up at this time and has this id.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        after: Option<(DateTime<Utc>, i64)>,
        max_rows: i32,
    ) -> Result<Vec<DeadLetter>, Error> {
        let (died_at, id) = after.unzip();
        let query = filter.bind(rows(sql!("admin/list_dead_letters"))).bind(i64::from(max_rows));
        let query = query.bind(died_at).bind(id);
        ask("listing dead letters", query.fetch_all(&mut self.connection)).await
    }

    /// Groups matching dead letters by what went wrong, the largest group first.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn group_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<Vec<DeadLetterGroup>, Error> {
        let query = filter.bind(rows(sql!("admin/group_dead_letters"))).bind(i64::from(max_rows));
        ask("grouping dead letters", query.fetch_all(&mut self.connection)).await
    }

    /// Counts matching dead letters.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn count_dead_letters(&mut self, filter: &DeadLetterFilter) -> Result<DeadLetterCount, Error> {
        ask(
            "counting dead letters",
            filter.bind(rows(sql!("admin/count_dead_letters"))).fetch_one(&mut self.connection),
        )
        .await
    }

    /// One dead letter with its event.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn show_dead_letter(&mut self, id: i64) -> Result<Option<WholeDeadLetter>, Error> {
        let query = rows(sql!("admin/show_dead_letter")).bind(id);
        ask("reading a dead letter", query.fetch_optional(&mut self.connection)).await
    }

    /// Turns matching dead letters back into deliveries, oldest first, with the attempt count reset. Returns
    /// how many; fewer than `max_rows` means that none is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription, or `max_rows` is not 1 to 100000.
    pub async fn redrive_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<i64, Error> {
        let query = filter.bind(rows::<(i64,)>(sql!("admin/redrive_dead_letters"))).bind(max_rows);
        Ok(ask("redriving dead letters", query.fetch_one(&mut self.connection)).await?.0)
    }

    /// Deletes matching dead letters, oldest first. Returns how many; fewer than `max_rows` means that none
    /// is left.
    ///
    /// # Errors
    /// [`Error::Refused`] when `max_rows` is not 1 to 100000.
    pub async fn discard_dead_letters(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
    ) -> Result<i64, Error> {
        let query = filter.bind(rows::<(i64,)>(sql!("admin/discard_dead_letters"))).bind(max_rows);
        Ok(ask("discarding dead letters", query.fetch_one(&mut self.connection)).await?.0)
    }
}

type Query<'q, T> = sqlx::query::QueryAs<'q, sqlx::Postgres, T, sqlx::postgres::PgArguments>;

impl DeadLetterFilter {
    /// Binds $1 to $6, the same in every statement about dead letters.
    fn bind<'q, T: for<'r> FromRow<'r, PgRow>>(&'q self, query: Query<'q, T>) -> Query<'q, T> {
        query
            .bind(&self.subscription)
            .bind(&self.topic)
            .bind(&self.error_like)
            .bind(self.since)
            .bind(self.id)
            .bind(self.until)
    }
}
