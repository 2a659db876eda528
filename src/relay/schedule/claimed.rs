//! What the answer of a claim says of what still waits: the end of each claim, for one of its subscriptions.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

use super::Schedule;
use crate::{delivery::SubscriptionId, store::Claim};

/// When to look again for what could not be looked at, because somebody had locked it for example.
pub(in crate::relay) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What a claim found of the rows of an ordered subscription.
#[derive(Debug, Clone, Copy)]
pub(in crate::relay) struct KeyedRows {
    /// Rows that are due, at most as many as were wanted; none: they were not looked at.
    pub(in crate::relay) due: Option<usize>,
    /// Whether any was claimed.
    pub(in crate::relay) claimed: bool,
    /// Whether keys wait for their next rows to be claimed.
    pub(in crate::relay) wants_keys: bool,
}

/// What is looked at again.
#[derive(Debug, Clone, Copy)]
enum What {
    Rows,
    Backlog { is_suspect: bool },
}

impl Schedule {
    /// A claim took `rows` of a subscription without an order. It has seen all that was due before `before`,
    /// unless there were more.
    pub(in crate::relay) fn rows_claimed(&self, claim: &Claim, rows: usize, before: DateTime<Utc>) {
        let Claim { subscription, room, since } = *claim;
        if rows < room as usize && self.has_seen_all(subscription, since, before) {
            self.catch_up(subscription);
        } else {
            self.fall_behind(subscription);
        }
    }

    /// The same for an ordered subscription.
    pub(in crate::relay) fn keyed_rows_claimed(
        &self,
        claim: &Claim,
        found: KeyedRows,
        before: DateTime<Utc>,
        now: Instant,
    ) {
        let Claim { subscription, room, since } = *claim;
        let Some(due) = found.due else {
            self.catch_up(subscription);
            self.look_again(subscription, What::Rows, now);
            // Suspects may come before it.
            self.look_again(subscription, What::Backlog { is_suspect: true }, now);
            return;
        };
        let is_cut = due >= room as usize;
        if found.wants_keys || is_cut && found.claimed {
            self.fall_behind(subscription);
        } else if due > 0 {
            // It may wait for others of its keys, or somebody has locked it.
            self.catch_up(subscription);
            self.look_again(subscription, What::Rows, now);
        } else if self.has_seen_all(subscription, since, before) {
            self.catch_up(subscription);
        } else {
            self.fall_behind(subscription);
        }
    }

    /// A claim took from the backlog of a subscription without an order: all that it wanted, or less; then
    /// `stays` says whether something is left, which others had locked. Returns whether it is no longer held
    /// back.
    pub(in crate::relay) fn backlog_claimed(
        &self,
        subscription: SubscriptionId,
        is_suspect: bool,
        took_all_wanted: bool,
        stays: bool,
        now: Instant,
    ) -> bool {
        if took_all_wanted {
            self.hold_back(subscription, is_suspect);
            return false;
        }
        let ends = self.let_go(subscription, is_suspect);
        if stays {
            self.look_again(subscription, What::Backlog { is_suspect }, now);
        }
        ends
    }

    /// A claim took from the backlog of an ordered subscription: suspects, others or nothing. `stays`:
    /// whether something is left that may be taken next. Returns whether it is no longer held back.
    pub(in crate::relay) fn ordered_backlog_claimed(
        &self,
        subscription: SubscriptionId,
        took_suspects: Option<bool>,
        stays: bool,
        now: Instant,
    ) -> bool {
        match took_suspects {
            // Some of them may go back.
            Some(true) => {
                self.hold_back(subscription, true);
                false
            }
            Some(false) if stays => {
                self.hold_back(subscription, false);
                false
            }
            _ => {
                self.let_go(subscription, true);
                let ends = self.let_go(subscription, false);
                if stays {
                    // Somebody has locked the first.
                    self.look_again(subscription, What::Backlog { is_suspect: false }, now);
                }
                ends
            }
        }
    }

    /// Looks again soon: once for all of a subscription, however many claims find it locked until then.
    fn look_again(&self, subscription: SubscriptionId, what: What, now: Instant) {
        let soon = self.step(now + LOOK_AGAIN);
        self.change(|state| {
            let step = *state.again.entry(subscription).or_insert(soon);
            match what {
                What::Rows => state.due.insert((step, subscription)),
                What::Backlog { is_suspect } => state.later.insert((step, subscription, is_suspect)),
            };
        });
    }
}
