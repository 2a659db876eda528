//! The database's time, carried on by our monotonic clock: a jump of this machine's clock moves nothing.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};

/// Estimates the database's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    anchor: Mutex<(DateTime<Utc>, Instant)>,
}

impl Clock {
    /// `ahead`: by how many seconds the database's clock is ahead of this machine's.
    pub(crate) fn new(ahead: f64) -> Self {
        Self { anchor: Mutex::new(anchor(ahead)) }
    }

    /// Measured again.
    pub(crate) fn set(&self, ahead: f64) {
        *self.anchor.lock().unwrap_or_else(PoisonError::into_inner) = anchor(ahead);
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        let (then, at) = *self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        then + at.elapsed()
    }

    /// How long ago something was, by the database's clock.
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
