//! The clock of the server is set back: leases that were given before end long after. Relays that live renew
//! theirs; those of relays that have died are ended here. A crash here costs nothing: the next start looks.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use super::{
    await_work::{DOORBELL, DUE},
    parts::{Base, Waiting},
};
use crate::store::Error;

/// A report that is earlier by so much was written after the clock was set.
const SET: TimeDelta = TimeDelta::seconds(2);
/// By then relays have renewed their leases. With the default lease they do every 3 s.
const RENEWED_IN: Duration = Duration::from_secs(15);
/// No lease is longer in relays with other settings: the configuration allows 10 minutes.
const LONGEST_LEASE: Duration = Duration::from_secs(660);

/// What one relay knows of the clock of its server.
#[derive(Debug)]
pub(super) struct SetBack {
    /// When it may have been set, if that was not followed up.
    noticed: Option<Instant>,
    /// Whether this relay has seen it.
    is_seen: bool,
}

impl SetBack {
    /// Before this relay began it may have been set as well.
    pub(super) fn new() -> Self {
        Self { noticed: Some(Instant::now()), is_seen: false }
    }

    /// Compares the time of a report with the estimate of the clock before it was sent. Returns whether it
    /// was set back.
    pub(super) fn reported(&mut self, at: DateTime<Utc>, expected: DateTime<Utc>) -> bool {
        let is_set_back = expected - at > SET;
        if is_set_back {
            tracing::warn!(
                seconds = (expected - at).num_seconds(),
                "the clock of the database was set back: retries are late by as much"
            );
            *self = Self { noticed: Some(Instant::now()), is_seen: true };
        }
        is_set_back
    }

    /// Ends what dead relays have leased, once the others have renewed theirs.
    pub(super) async fn follow_up(&mut self, base: &Base, waiting: &Waiting) -> Result<(), Error> {
        let wait = RENEWED_IN.max(base.settings.lease);
        if self.noticed.is_none_or(|noticed| noticed.elapsed() < wait) {
            return Ok(());
        }
        // Tried again after the same wait, if this fails.
        self.noticed = Some(Instant::now());
        // Programs may set a longer lease than the configuration.
        let longest = LONGEST_LEASE.max(base.settings.lease * 2);
        // Reading all deliveries would cost too much at every start.
        let freed = base.store.free_far_leases(longest, self.is_seen).await?;
        *self = Self { noticed: None, is_seen: false };
        if freed > 0 {
            waiting.look_at_everything();
            base.store.notify(DOORBELL, &[DUE.to_owned()]).await?;
        }
        Ok(())
    }
}
