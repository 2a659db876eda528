//! What leaves the database by its age. The functions in `migrations/0018_retention.sql` decide what may.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Row as _, postgres::PgRow};

use super::{connection::Store, error::Error};
use crate::sink::sqlstate::Class;

/// What a step did for the partitions of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What was done.
    pub done: Done,
    /// Name of the partition, if it was about one.
    pub partition: Option<String>,
    /// Rows that were copied or deleted.
    pub rows: i64,
    /// Why it is [`Done::Refused`] or [`Done::Locked`].
    pub problem: Option<String>,
}

/// What a step for the partitions of a log did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// There was nothing to do.
    Nothing,
    /// Another relay is doing this.
    Busy,
    /// A lock was not to be had within 100 ms.
    Locked,
    /// No partition can be made until somebody acts.
    Refused,
    /// A part of the way to a new partition.
    Prepared,
    /// A partition was made.
    Made,
    /// A partition was dropped.
    Dropped,
    /// A partition was emptied, because the lock that dropping needs was not to be had.
    Emptied,
    /// What was owed of a partition was copied into dead letters.
    Copied,
    /// Old rows of the default partition were deleted.
    Deleted,
}

impl Done {
    fn from_code(code: Option<&str>) -> Self {
        match code {
            None => Self::Nothing,
            Some("busy") => Self::Busy,
            Some("locked") => Self::Locked,
            Some("refused") => Self::Refused,
            Some("converted" | "made") => Self::Made,
            Some("dropped") => Self::Dropped,
            Some("emptied") => Self::Emptied,
            Some("copied") => Self::Copied,
            Some("deleted") => Self::Deleted,
            Some(_) => Self::Prepared,
        }
    }
}

/// A partition that is due to be dropped and stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// `events` or `attempts`.
    pub log: String,
    /// Name of the partition.
    pub partition: String,
    /// What keeps it.
    pub kept_by: String,
}

impl Store {
    /// Takes a step towards the next partition of `events` or `attempts`, whose rows are kept for `period`.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn make_partition(&self, log: &str, period: Duration) -> Result<Step, Error> {
        let (doing, sql) = ("making a partition", sql!("relay/make_partition"));
        let read = |row: &PgRow| -> Result<Step, sqlx::Error> {
            Ok(Step {
                done: Done::from_code(row.try_get("done")?),
                partition: row.try_get("partition")?,
                rows: 0,
                problem: row.try_get("problem")?,
            })
        };
        let (log, period) = (log.to_owned(), period.as_secs_f64());
        match self.statement(doing, sql).bind(log.clone()).bind(period).row(read).await {
            Err(error) if error.class() == Some(Class::Canceled) => {
                let query = sqlx::query(sql).persistent(self.is_persistent()).bind(log).bind(period);
                self.patient(doing, query, read).await
            }
            step => step,
        }
    }

    /// Drops the oldest partition of `events` or `attempts` that is older than `period` and that nothing is
    /// owed of, or does something else towards that.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn drop_partition(&self, log: &str, period: Duration, laggard: &str) -> Result<Step, Error> {
        let (doing, sql) = ("dropping a partition", sql!("relay/drop_partition"));
        let read = |row: &PgRow| -> Result<Step, sqlx::Error> {
            Ok(Step {
                done: Done::from_code(row.try_get("done")?),
                partition: row.try_get("partition")?,
                rows: row.try_get("rows")?,
                problem: None,
            })
        };
        let (log, period, laggard) = (log.to_owned(), period.as_secs_f64(), laggard.to_owned());
        let quick = self.statement(doing, sql).bind(log.clone()).bind(period).bind(laggard.clone());
        match quick.row(read).await {
            Err(error) if error.class() == Some(Class::Canceled) => {
                let query = sqlx::query(sql).persistent(self.is_persistent());
                self.patient(doing, query.bind(log).bind(period).bind(laggard), read).await
            }
            step => step,
        }
    }

    /// Deletes rows of `event_ids` or `dead_letters` that are older than `period` and not older than `after`.
    /// Returns how many, and the newest time among them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn delete_old(
        &self,
        what: &str,
        period: Duration,
        after: Option<DateTime<Utc>>,
    ) -> Result<(i64, Option<DateTime<Utc>>), Error> {
        let (doing, sql) = ("deleting what is old", sql!("relay/delete_old"));
        let read = |row: &PgRow| -> Result<(i64, Option<DateTime<Utc>>), sqlx::Error> {
            Ok((row.try_get("rows")?, row.try_get("newest")?))
        };
        let (what, period) = (what.to_owned(), period.as_secs_f64());
        match self.statement(doing, sql).bind(what.clone()).bind(period).bind(after).row(read).await {
            // Entries of what was deleted before may have to be passed.
            Err(error) if error.class() == Some(Class::Canceled) => {
                let query = sqlx::query(sql).persistent(self.is_persistent());
                self.patient(doing, query.bind(what).bind(period).bind(after), read).await
            }
            deleted => deleted,
        }
    }

    /// Says that nothing of `events`, `attempts`, `event_ids` or `dead_letters` leaves by its age.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn keep_for_ever(&self, what: &str) -> Result<(), Error> {
        self.statement("keeping what is old", sql!("relay/keep_for_ever"))
            .bind(what.to_owned())
            .execute()
            .await
    }

    /// Partitions that are due to be dropped and stay.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_kept(&self) -> Result<Vec<Kept>, Error> {
        self.statement("reading which partitions are kept", sql!("relay/load_kept"))
            .rows(|row| {
                Ok(Kept {
                    log: row.try_get("log")?,
                    partition: row.try_get("partition")?,
                    kept_by: row.try_get("kept_by")?,
                })
            })
            .await
    }
}
