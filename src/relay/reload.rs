//! Follows committed changes of subscriptions and event types: reads the changed rows, binds them to sinks,
//! and replaces the index.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use super::{
    breaker::About,
    deliver::Deliver,
    parts::{Base, Counted, Parts, Sending, Waiting},
    usable::Unusable,
};
use crate::{
    delivery::{SubscriptionId, rate::Rate},
    event::types::{EventType, Types},
    sink::Registry,
    store::{Error, StateChange},
    subscription::{Index, Subscription},
};

/// Subscriptions and event types as last read.
#[derive(Debug)]
pub(super) struct Reload {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
    sinks: Registry,
    deliver: Arc<Deliver>,
    snapshot: Option<String>,
    subscriptions: BTreeMap<SubscriptionId, Arc<Subscription>>,
    unusable: Unusable,
    types: BTreeMap<i64, Arc<EventType>>,
}

impl Reload {
    pub(super) fn new(parts: &Parts, deliver: Arc<Deliver>) -> Self {
        let Parts { base, sending, waiting, counted, sinks, .. } = parts.clone();
        Self {
            base,
            sending,
            waiting,
            counted,
            sinks,
            deliver,
            snapshot: None,
            subscriptions: BTreeMap::new(),
            unusable: Unusable::default(),
            types: BTreeMap::new(),
        }
    }

    /// Reads and binds everything again, if somebody asks for it: also what did not change may refer to
    /// secrets and files that did.
    ///
    /// # Errors
    /// Those of the database. It is then tried again.
    pub(super) async fn load_all_if_asked(&mut self) -> Result<(), Error> {
        if !self.base.reload.asked.swap(false, Ordering::AcqRel) {
            return Ok(());
        }
        let snapshot = self.snapshot.take();
        let loaded = self.load().await;
        if loaded.is_err() {
            self.base.reload.asked.store(true, Ordering::Release);
            self.snapshot = snapshot;
        }
        loaded
    }

    /// Updates the index.
    ///
    /// # Errors
    /// Those of the database. The old index then stays.
    pub(super) async fn load(&mut self) -> Result<(), Error> {
        let (base, sending, waiting) = (self.base.clone(), self.sending.clone(), self.waiting.clone());
        let loaded = base.store.load_subscriptions(self.snapshot.as_deref()).await?;
        // Read after the generation: a type that changes in between changes it again.
        let (types, checked_types) = self.load_types().await?;
        let limits: HashMap<String, Rate> = (loaded.limits.into_iter())
            .filter_map(|(organization, rate)| Some((organization, Rate::parse(&rate).ok()?)))
            .collect();
        let ids: HashSet<SubscriptionId> = loaded.ids.into_iter().collect();
        for deleted in self.subscriptions.keys().filter(|id| !ids.contains(id)) {
            waiting.schedule.orphan(*deleted);
        }
        self.subscriptions.retain(|id, _| ids.contains(id));
        self.unusable.keep_only(&ids);
        for (id, why) in &loaded.unreadable {
            base.telemetry.subscription_unreadable(*id, why);
        }
        let mut resumed = Vec::new();
        for row in loaded.rows {
            let (id, resumed_at) = (row.id, row.resumed_at);
            let before = self.subscriptions.get(&id).filter(|_| self.snapshot.is_some());
            let subscription = if let Some(same) = before.and_then(|before| before.in_state_of(&row)) {
                same
            } else {
                let (subscription, problem) = Subscription::bind(*row, &self.sinks);
                self.unusable.note(&subscription.row, problem);
                subscription
            };
            if subscription.is_choosy() {
                tokio::task::yield_now().await; // thousands of expressions take seconds to compile
            }
            let may_send = subscription.may_send();
            let before = self.subscriptions.insert(id, Arc::new(subscription));
            let could_send =
                before.is_some_and(|before| before.may_send() && before.row.resumed_at == resumed_at);
            // Also when it was paused and resumed in between: a claim may have found nothing meanwhile.
            if may_send && !could_send {
                resumed.push(id);
            }
        }
        let index = Index::new(loaded.generation, self.subscriptions.values().cloned()).with_types(types);
        sending.dispatch.share_among(index.sendable());
        base.telemetry.reloaded(loaded.generation, self.subscriptions.len(), self.unusable.len());
        let destinations: HashSet<Arc<str>> =
            index.iter().filter_map(|subscription| subscription.outlet.destination().cloned()).collect();
        let ids: HashSet<SubscriptionId> = index.iter().map(|subscription| subscription.row.id).collect();
        sending.breakers.keep_only(|about| match about {
            About::Host(host) => destinations.contains(host),
            About::Subscription(id) => ids.contains(id),
        });
        sending.dispatch.paces.follow(&index, &limits);
        let index = Arc::new(index);
        base.index.store(index.clone());
        waiting.starts.notify_one();
        waiting.replays.notify_one();
        let mut back = Vec::new();
        for id in resumed {
            // What was redriven meanwhile comes before the later events of its key.
            back.extend(sending.dispatch.close_gate(id).0);
            sending.pauses.end(id);
            // A claim that found nothing because it was paused proves nothing about what waits.
            waiting.schedule.look_back(id);
            waiting.schedule.note(id, Instant::now());
            waiting.schedule.hold_back(id, false);
            waiting.schedule.hold_back(id, true);
        }
        // Nothing begins under an old version.
        back.extend(sending.dispatch.follow(|id| index.get(id)));
        self.deliver.give_back(back, crate::delivery::Reason::LeaseLost).await;
        // After the index was replaced: a transaction that has locked such a row must not delay that.
        for read in checked_types {
            let problem = read.problem();
            if base.store.set_event_type_state(&read.row, problem.as_deref()).await? {
                base.telemetry.event_type_checked(&read.row.topic, read.row.version, problem.as_deref());
            }
        }
        self.record_states().await?;
        self.snapshot = Some(loaded.snapshot);
        Ok(())
    }

    /// Records which subscriptions this relay can use, where that is not what is recorded.
    ///
    /// # Errors
    /// Those of the database.
    async fn record_states(&mut self) -> Result<(), Error> {
        let states = self.unusable.states(&self.subscriptions);
        let recorded = self.base.store.set_subscription_states(&states).await?;
        self.unusable.recorded(states.len(), &recorded);
        // Nobody needs to hear that a new subscription can be used.
        let is_news = |change: &StateChange| !(change.from.has_no_problem() && change.to.has_no_problem());
        for change in states.iter().filter(|change| recorded.contains(&change.id) && is_news(change)) {
            let name = self.subscriptions.get(&change.id).map_or("", |one| &one.row.name);
            let reason = change.reason.as_deref().unwrap_or("");
            self.base.telemetry.subscription_changed(name, change.to, reason);
        }
        Ok(())
    }

    /// Records again what could not be recorded, or what another relay has overruled that has ended since.
    ///
    /// # Errors
    /// Those of the database.
    pub(super) async fn follow_states(&mut self) -> Result<(), Error> {
        if self.waiting.relay_ended.swap(false, Ordering::AcqRel) {
            self.unusable.say_again();
        } else if !self.unusable.is_behind {
            return Ok(());
        }
        self.record_states().await
    }

    /// Reads the types that changed. The second value has those whose recorded problem is not the real one.
    async fn load_types(&mut self) -> Result<(Arc<Types>, Vec<Arc<EventType>>), Error> {
        let loaded = self.base.store.load_event_types(self.snapshot.as_deref()).await?;
        let ids: HashSet<i64> = loaded.ids.into_iter().collect();
        self.types.retain(|id, _| ids.contains(id));
        self.counted.last_warned.keep_only(|id| ids.contains(&id));
        let mut changed_problems = Vec::new();
        for row in loaded.rows {
            // Compiling takes a while, so it does not run on a thread of the runtime.
            let Ok(read) = tokio::task::spawn_blocking(move || Arc::new(EventType::read(row))).await else {
                continue;
            };
            if read.problem() != read.row.state_reason {
                changed_problems.push(read.clone());
            }
            self.types.insert(read.row.id, read);
        }
        Ok((Arc::new(Types::new(self.types.values().cloned())), changed_problems))
    }
}
