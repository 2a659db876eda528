//! Changes of many rows at once: how many at most, only counted or changed, and how many are left.

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{DeadLetterFilter, DeliveryFilter, Error, Operator};

/// What is done with many rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BulkVerb {
    /// Dead letters become deliveries again.
    Redrive,
    /// Dead letters are deleted.
    Discard,
    /// Deliveries that wait become due.
    Retry,
    /// Deliveries that wait are removed.
    Cancel,
}

impl BulkVerb {
    /// Names of the count of what was done, and of what would be done.
    #[must_use]
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Redrive => ("redriven", "would_redrive"),
            Self::Discard => ("discarded", "would_discard"),
            Self::Retry => ("retried", "would_retry"),
            Self::Cancel => ("cancelled", "would_cancel"),
        }
    }
}

/// How many rows were changed or would be, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BulkCount {
    /// What was done with them.
    pub verb: BulkVerb,
    /// Whether they were only counted.
    pub is_dry_run: bool,
    /// Rows that were changed, or would be.
    pub count: i64,
    /// Rows that match afterwards; in a dry run all that match.
    pub left: i64,
}

impl Serialize for BulkCount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (done, would) = self.verb.names();
        let (count, left) = if self.is_dry_run { (would, "matching") } else { (done, "left") };
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(count, &self.count)?;
        map.serialize_entry(left, &self.left)?;
        map.end()
    }
}

/// Why everything is not changed that was not asked for; none if what is chosen is clear. `is_chosen`:
/// whether there is a filter; `all`: whether all of them were asked for.
#[must_use]
pub fn unclear_choice(is_chosen: bool, all: bool, is_dry_run: bool) -> Option<Unclear> {
    match (is_chosen, all) {
        (false, false) if !is_dry_run => Some(Unclear::Nothing),
        (true, true) => Some(Unclear::Both),
        _ => None,
    }
}

/// Why a choice of rows is not clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclear {
    /// There is neither a filter nor the word that all are meant.
    Nothing,
    /// There is a filter, and the word that all are meant.
    Both,
}

impl Operator {
    /// Redrives matching dead letters as [`Operator::redrive_dead_letters`] does, or counts them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn redrive_in_bulk(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
        is_dry_run: bool,
    ) -> Result<BulkCount, Error> {
        let verb = BulkVerb::Redrive;
        if is_dry_run {
            return Ok(dry(verb, self.count_dead_letters(filter).await?.redrivable, max_rows));
        }
        let count = self.redrive_dead_letters(filter, max_rows).await?;
        let left = self.count_dead_letters(filter).await?.redrivable;
        Ok(BulkCount { verb, is_dry_run, count, left })
    }

    /// Discards matching dead letters as [`Operator::discard_dead_letters`] does, or counts them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn discard_in_bulk(
        &mut self,
        filter: &DeadLetterFilter,
        max_rows: i32,
        is_dry_run: bool,
    ) -> Result<BulkCount, Error> {
        let verb = BulkVerb::Discard;
        if is_dry_run {
            return Ok(dry(verb, self.count_dead_letters(filter).await?.matching, max_rows));
        }
        let count = self.discard_dead_letters(filter, max_rows).await?;
        let left = self.count_dead_letters(filter).await?.matching;
        Ok(BulkCount { verb, is_dry_run, count, left })
    }

    /// Retries matching deliveries as [`Operator::retry_deliveries`] does, or counts them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn retry_in_bulk(
        &mut self,
        filter: &DeliveryFilter,
        max_rows: i32,
        is_dry_run: bool,
    ) -> Result<BulkCount, Error> {
        let verb = BulkVerb::Retry;
        if is_dry_run {
            return Ok(dry(verb, self.count_deliveries(filter).await?.retriable, max_rows));
        }
        let count = self.retry_deliveries(filter, max_rows).await?;
        let left = self.count_deliveries(filter).await?.retriable;
        let left = if count < max_rows.into() { 0 } else { left };
        Ok(BulkCount { verb, is_dry_run, count, left })
    }

    /// Cancels matching deliveries as [`Operator::cancel_deliveries`] does, or counts them.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn cancel_in_bulk(
        &mut self,
        filter: &DeliveryFilter,
        max_rows: i32,
        dead_letters: bool,
        is_dry_run: bool,
    ) -> Result<BulkCount, Error> {
        let verb = BulkVerb::Cancel;
        if is_dry_run {
            return Ok(dry(verb, self.count_deliveries(filter).await?.matching, max_rows));
        }
        let count = self.cancel_deliveries(filter, max_rows, dead_letters).await?;
        let left = self.count_deliveries(filter).await?.matching;
        Ok(BulkCount { verb, is_dry_run, count, left })
    }
}

fn dry(verb: BulkVerb, matching: i64, max_rows: i32) -> BulkCount {
    BulkCount { verb, is_dry_run: true, count: matching.min(max_rows.into()), left: matching }
}
