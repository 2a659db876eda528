//! Deliveries that begin together.

use std::{sync::Arc, time::Instant};

use super::{job::Job, suspects::Suspect};
use crate::{delivery::SubscriptionId, subscription::Subscription};

/// Deliveries of one subscription that begin together.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) subscription: Arc<Subscription>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) began: Instant,
    pub(super) suspect: Option<Suspect>,
}

/// What is kept of an attempt until its deliveries are reported.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub(super) subscription: SubscriptionId,
    pub(super) count: u32,
    pub(super) began: Instant,
    pub(super) suspect: Option<Suspect>,
}

impl Attempt {
    pub(crate) fn to_end(&self) -> Ended {
        let count = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        Ended { subscription: self.subscription.row.id, count, began: self.began, suspect: self.suspect }
    }
}
