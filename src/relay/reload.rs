//! Follows committed changes of subscriptions: reads what changed, binds it to sinks, swaps the index whole.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Instant,
};

use super::Shared;
use crate::{
    store::Error,
    subscription::{Index, Subscription},
};

/// The rows as last seen.
#[derive(Debug)]
pub(super) struct Reload {
    shared: Arc<Shared>,
    snapshot: Option<String>,
    usable: BTreeMap<i64, Arc<Subscription>>,
    invalid: HashSet<i64>,
}

impl Reload {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, snapshot: None, usable: BTreeMap::new(), invalid: HashSet::new() }
    }

    /// Brings the index up to date.
    ///
    /// # Errors
    /// Those of the database; the old index then stays.
    pub(super) async fn load(&mut self) -> Result<(), Error> {
        let shared = self.shared.clone();
        let first = self.snapshot.is_none();
        let loaded = shared.store.load_subscriptions(self.snapshot.as_deref()).await?;
        let ids: HashSet<i64> = loaded.ids.into_iter().collect();
        self.usable.retain(|id, _| ids.contains(id));
        self.invalid.retain(|id| ids.contains(id));
        let mut judgements = Vec::new();
        let mut changed = Vec::with_capacity(loaded.rows.len());
        for row in loaded.rows {
            let (id, name, state) = (row.id, row.name.clone(), row.state.clone());
            changed.push(id);
            match Subscription::bind(row, &shared.sinks) {
                Ok(subscription) => {
                    // A judgement made elsewhere, or before a restart with other secrets, stands until somebody changes
                    // the row; only a relay that starts looks at it with fresh eyes.
                    if state == "invalid" && first {
                        judgements.push((id, name, "invalid", "ok", None));
                    }
                    if state == "invalid" {
                        self.invalid.insert(id);
                    } else {
                        self.invalid.remove(&id);
                    }
                    self.usable.insert(id, Arc::new(subscription));
                }
                Err(reason) => {
                    self.usable.remove(&id);
                    self.invalid.insert(id);
                    if state == "ok" {
                        judgements.push((id, name, "ok", "invalid", Some(reason)));
                    }
                }
            }
        }
        let index = Index::new(loaded.generation, self.usable.values().cloned());
        shared.permits.share_among(index.sendable());
        shared.telemetry.reloaded(loaded.generation, self.usable.len(), self.invalid.len());
        let destinations: HashSet<Arc<str>> = index.iter().filter_map(|subscription| subscription.outlet.destination().cloned()).collect();
        shared.breakers.keep_only(|destination| destinations.contains(destination));
        shared.index.store(Arc::new(index));
        self.snapshot = Some(loaded.snapshot);
        for id in changed {
            shared.agenda.note(id, Instant::now()); // it may just have been resumed
        }
        for (id, name, from, state, reason) in judgements {
            if shared.store.set_subscription_state(id, from, state, reason.as_deref()).await? {
                shared.telemetry.subscription_changed(&name, state, reason.as_deref().unwrap_or(""));
            }
        }
        Ok(())
    }
}
