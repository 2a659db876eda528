//! The gates of ordered subscriptions, in front of their queues.

use std::{collections::HashMap, sync::Arc, time::Instant};

use super::{
    Dispatch, State,
    gate::{Epoch, Fate, Gate, Keyed, Place, Released},
    job::{Job, Passage},
};
use crate::{
    delivery::SubscriptionId,
    store::{Coalesce, Ordering},
    subscription::Subscription,
};

/// The epoch of each gate when a claim began.
pub(crate) type Epochs = HashMap<SubscriptionId, Epoch>;

/// Deliveries that do not begin: each becomes a row, goes back, or is superseded, as its passage says.
#[derive(Debug, Default)]
pub(crate) struct Setbacks(pub(crate) Vec<Job>);

/// A delivery of an ordered subscription whose verdict is committed.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) subscription: SubscriptionId,
    pub(crate) lane: Option<Arc<str>>,
    pub(crate) place: Place,
    pub(crate) passage: Passage,
    pub(crate) fate: Fate,
}

impl Subscription {
    /// Whether its events keep their order by key.
    pub(crate) fn is_ordered(&self) -> bool {
        self.row.ordering == Ordering::Key
    }
}

impl Dispatch {
    /// Begins to deliver an ordered subscription. `keys` have rows or are parked.
    pub(crate) fn open_gate(&self, subscription: &Subscription, keys: Vec<String>) {
        let coalesces = subscription.row.coalesce == Coalesce::Key;
        let gate = Gate::new(keys.into_iter().map(Arc::from), coalesces);
        self.state().gates.insert(subscription.row.id, gate);
    }

    /// Ends delivering an ordered subscription. Returns what waits and goes back.
    pub(crate) fn close_gate(&self, subscription: SubscriptionId) -> Setbacks {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut released = Released::default();
        if let Some(gate) = state.gates.get_mut(&subscription) {
            gate.close(&mut released);
        }
        state.release(subscription, released)
    }

    /// Whether an ordered subscription has no gate, or a closed one of which nothing is left.
    pub(crate) fn has_no_gate(&self, subscription: SubscriptionId) -> bool {
        let mut state = self.state();
        let is_over = |gate: &Gate<Job>| !gate.is_open() && gate.is_empty();
        if state.gates.get(&subscription).is_some_and(is_over) {
            state.gates.remove(&subscription);
        }
        !state.gates.contains_key(&subscription)
    }

    /// Whether the gate of an ordered subscription is open.
    pub(crate) fn is_gate_open(&self, subscription: SubscriptionId) -> bool {
        self.state().gates.get(&subscription).is_some_and(Gate::is_open)
    }

    /// The epoch of a claim of rows that begins now.
    pub(crate) fn epoch(&self, subscription: SubscriptionId) -> Epoch {
        self.state().gates.get(&subscription).map(Gate::epoch).unwrap_or_default()
    }

    /// The epoch with which the backlog of an ordered subscription may be claimed; none: not now.
    pub(crate) fn epoch_of_backlog(&self, subscription: SubscriptionId) -> Option<Epoch> {
        self.state().gates.get(&subscription).filter(|gate| gate.may_claim()).map(Gate::epoch)
    }

    /// Keys of a subscription whose next rows are to be claimed now, at most so many.
    pub(crate) fn take_wanted_keys(&self, subscription: SubscriptionId, most: usize) -> Vec<Arc<str>> {
        let mut state = self.state();
        state.gates.get_mut(&subscription).map_or_else(Vec::new, |gate| gate.take_wanted(most))
    }

    /// The next rows of these keys are still to be claimed.
    pub(crate) fn want_keys(&self, keys: impl IntoIterator<Item = (SubscriptionId, Arc<str>)>) {
        let mut state = self.state();
        for (subscription, key) in keys {
            if let Some(gate) = state.gates.get_mut(&subscription) {
                gate.want(key);
            }
        }
    }

    /// Whether rows of keys of this subscription are to be claimed.
    pub(crate) fn wants_keys(&self, subscription: SubscriptionId) -> bool {
        self.state().gates.get(&subscription).is_some_and(Gate::has_wanted)
    }

    /// No row of this key could be claimed: it has none, or its first one is not due.
    pub(crate) fn found_none(
        &self,
        subscription: SubscriptionId,
        key: &Arc<str>,
        has_rows: bool,
        epochs: &Epochs,
    ) {
        let epoch = epochs.get(&subscription).copied().unwrap_or_default();
        if let Some(gate) = self.state().gates.get_mut(&subscription) {
            gate.found_none(key, has_rows, epoch);
        }
    }

    /// Takes deliveries of ordered subscriptions that were claimed; claims began at these epochs.
    pub(crate) fn arrive(&self, jobs: Vec<Job>, epochs: &Epochs) -> Setbacks {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut arrived: HashMap<SubscriptionId, Vec<Keyed<Job>>> = HashMap::new();
        let mut setbacks = Setbacks::default();
        for mut job in jobs {
            state.numbers.ahead += 1;
            state.numbers.ahead_bytes += job.bytes;
            let key = job.delivery.event().and_then(|event| event.key.as_deref());
            job.lane = job.lane.take().or_else(|| key.map(Arc::from));
            let id = job.delivery.subscription.row.id;
            arrived.entry(id).or_default().push((job.lane.clone(), job));
        }
        for (id, mut jobs) in arrived {
            jobs.sort_by_key(|(_, job)| job.delivery.position);
            let epoch = epochs.get(&id).copied().unwrap_or_default();
            let released = match state.gates.get_mut(&id) {
                Some(gate) => gate.arrive(jobs, epoch),
                None => {
                    Released { back: jobs.into_iter().map(|(_, job)| job).collect(), ..Released::default() }
                }
            };
            setbacks.0.extend(self.release_in(state, id, released, false).0);
        }
        setbacks
    }

    /// These were claimed and cannot be held: they go back. Marks them.
    pub(crate) fn return_unread(&self, jobs: &mut [Job]) {
        let mut state = self.state();
        for job in jobs {
            if let Some(gate) = state.gates.get_mut(&job.delivery.subscription.row.id) {
                gate.returns(1);
                job.passage = Passage::Back;
            }
        }
    }

    /// Verdicts on deliveries of ordered subscriptions are committed: the next of their keys go on.
    pub(crate) fn committed(&self, committed: Vec<Committed>) -> Setbacks {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut setbacks = Setbacks::default();
        for Committed { subscription, lane, place, passage, fate } in committed {
            let Some(gate) = state.gates.get_mut(&subscription) else { continue };
            let mut released = match (passage, &lane) {
                (Passage::Passed, Some(key)) => gate.ended(key, place, fate),
                (Passage::Aside, Some(key)) => gate.written(key),
                (Passage::Superseded, Some(key)) => gate.superseded(key),
                (Passage::Back, _) => {
                    gate.returned();
                    Released::default()
                }
                _ => Released::default(),
            };
            if fate == Fate::Lost {
                gate.close(&mut released);
            }
            setbacks.0.extend(self.release_in(state, subscription, released, true).0);
            let is_over = |gate: &Gate<Job>| !gate.is_open() && gate.is_empty();
            if state.gates.get(&subscription).is_some_and(is_over) {
                state.gates.remove(&subscription);
            }
        }
        setbacks
    }

    /// Puts what passes into the queue of its subscription.
    fn release_in(
        &self,
        state: &mut State,
        id: SubscriptionId,
        mut released: Released<Job>,
        have_waited: bool,
    ) -> Setbacks {
        for mut job in std::mem::take(&mut released.pass) {
            if job.lane.is_some() {
                job.passage = Passage::Passed;
                job.queued = Instant::now(); // until now it waited for its turn
            }
            self.enqueue(state, job, have_waited);
        }
        state.release(id, released)
    }
}

impl State {
    /// Counts and marks what a gate gives up, when nothing passes.
    fn release(&mut self, id: SubscriptionId, released: Released<Job>) -> Setbacks {
        let Released { pass, aside, back, superseded } = released;
        debug_assert!(pass.is_empty(), "what passes is put into its queue");
        let mut setbacks = Vec::with_capacity(aside.len() + back.len() + superseded.len());
        for (jobs, passage) in
            [(aside, Passage::Aside), (back, Passage::Back), (superseded, Passage::Superseded)]
        {
            setbacks.extend(jobs.into_iter().map(|job| Job { passage, ..job }));
        }
        self.took_back(&setbacks);
        if let Some(queue) = self.queues.get_mut(&id) {
            queue.gated = self.gates.get(&id).map_or(0, Gate::waiting);
        }
        Setbacks(setbacks)
    }
}
