//! The database's time, continued by this machine's monotonic clock, so that jumps of the wall clock do not
//! matter.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};

/// An estimate of the database's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    anchor: Mutex<(DateTime<Utc>, Instant)>,
}

impl Default for Clock {
    /// This machine's clock, until the database's is known.
    fn default() -> Self {
        Self { anchor: Mutex::new(anchor(0.0)) }
    }
}

impl Clock {
    /// Replaces the estimate. `ahead`: seconds by which the database's clock is ahead of this machine's.
    pub(crate) fn set(&self, ahead: f64) {
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = anchor(ahead);
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        let (then, at) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        then + at.elapsed()
    }

    /// Time since an instant of the database's clock; zero if it is in the future.
    pub(crate) fn age(&self, since: DateTime<Utc>) -> Duration {
        (self.now() - since).to_std().unwrap_or_default()
    }
}

fn anchor(ahead: f64) -> (DateTime<Utc>, Instant) {
    let machine = DateTime::<Utc>::from(SystemTime::now());
    #[expect(
        clippy::cast_possible_truncation,
        reason = "whole milliseconds are enough, and a float saturates"
    )]
    let ahead = chrono::TimeDelta::try_milliseconds((ahead * 1_000.0) as i64).unwrap_or_default();
    (machine + ahead, Instant::now())
}
