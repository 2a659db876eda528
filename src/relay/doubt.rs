//! Claims whose answer was lost: each may have leased what this relay does not know. That is found by its
//! token and given back, as soon as the database answers or until the leases have ended. What is claimed in
//! order has its gates closed meanwhile.
//!
//! A crash here costs the wait of one lease.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    parts::{Base, Waiting},
    takeover::all_of,
};
use crate::{
    delivery::SubscriptionId,
    store::{Batch, Error, Kind, PageBatch, RetryRow, Settler},
};

/// A claim in doubt.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    /// The token of what it may have leased.
    pub(super) token: Uuid,
    /// The subscriptions it was for.
    pub(super) subscriptions: Vec<SubscriptionId>,
    /// The tokens under which these were leased, if they are ordered. They end first: a statement that is
    /// still on its way to the database then leases nothing.
    pub(super) order: Vec<Uuid>,
    /// When it was sent.
    pub(super) began: Instant,
}

/// The claims in doubt.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    all: Mutex<Vec<Doubt>>,
}

impl Doubts {
    fn all(&self) -> std::sync::MutexGuard<'_, Vec<Doubt>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a claim that failed with this error, if it may have taken place nevertheless. Returns whether it
    /// may.
    pub(super) fn note(&self, error: &Error, doubt: impl FnOnce() -> Doubt) -> bool {
        let is_unknown = error.kind() == Kind::Connection;
        if is_unknown {
            self.all().push(doubt());
        }
        is_unknown
    }

    /// The next one. Those whose leases have ended are forgotten: they are claimed or taken over again.
    fn next(&self, lease: Duration) -> Option<Doubt> {
        let mut all = self.all();
        all.retain(|doubt| doubt.began.elapsed() < lease);
        all.first().cloned()
    }

    fn resolved(&self, token: Uuid) {
        self.all().retain(|doubt| doubt.token != token);
    }
}

/// Gives back what claims in doubt have leased.
pub(super) async fn resolve(base: &Base, waiting: &Waiting) -> Result<(), Error> {
    while let Some(doubt) = waiting.doubts.next(base.settings.lease) {
        give_back(base, waiting, &doubt).await?;
        waiting.doubts.resolved(doubt.token);
    }
    Ok(())
}

async fn give_back(base: &Base, waiting: &Waiting, doubt: &Doubt) -> Result<(), Error> {
    let Doubt { token, subscriptions, order, .. } = doubt;
    if !order.is_empty() {
        base.store.release_order(subscriptions, order).await?;
    }
    let mut batch = PageBatch { tokens: vec![*token], ..PageBatch::default() };
    for page in base.store.find_claimed_pages(*token).await? {
        batch.back.extend(all_of(&page));
        batch.finished.push(page.id);
    }
    if !batch.is_empty() {
        base.store.settle_pages(&batch, Settler::First).await?;
    }
    for part in &batch.back {
        waiting.schedule.hold_back(part.entry.subscription, part.deaths > 0);
    }
    let rows = match subscriptions.as_slice() {
        [] => Vec::new(),
        some => base.store.find_claimed_rows(some, *token, base.settings.lease).await?,
    };
    if !rows.is_empty() {
        let back = |id| RetryRow { id, wait: Some(Duration::ZERO), counts: false, ambiguous: false };
        let retries = rows.into_iter().map(back).collect();
        base.store.settle_deliveries(&Batch { retries, tokens: vec![*token], ..Batch::default() }).await?;
    }
    subscriptions.iter().for_each(|id| waiting.schedule.fall_behind(*id));
    Ok(())
}
