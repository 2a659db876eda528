//! Whether a subscription can be sent to now.

use std::time::Instant;

use super::{breaker::Gate, parts::Sending};
use crate::subscription::Subscription;

/// Whether a subscription as a whole can be sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Free,
    /// One delivery may be tried.
    Probe,
    Blocked,
}

impl Sending {
    /// What stands in the way of a subscription as a whole.
    pub(super) fn way(&self, subscription: &Subscription, now: Instant) -> Way {
        if !subscription.may_send() || self.pauses.is_paused(subscription.row.id, now) {
            return Way::Blocked;
        }
        match subscription.outlet.destination() {
            None => Way::Free,
            Some(host) => match self.breakers.gate(subscription.row.id, host, now) {
                Gate::Closed => Way::Free,
                Gate::Probe => Way::Probe,
                Gate::Open(_) => Way::Blocked,
            },
        }
    }
}
