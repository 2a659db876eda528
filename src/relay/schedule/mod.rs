//! When to claim for which subscription. It is only a hint: what is due stands in the database, and the poll
//! finds it too. But a hint that is lost costs its deliveries the time until the poll.

mod claimed;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;

pub(super) use self::claimed::KeyedRows;
use crate::delivery::SubscriptionId;

/// Most due times that are remembered. The poll finds the others.
const REMEMBERED: usize = 100_000;
/// Resolution of due times.
const STEP: Duration = Duration::from_millis(5);

/// When to claim for which subscription.
#[derive(Debug)]
pub(crate) struct Schedule {
    origin: Instant,
    state: Mutex<State>,
    /// Notified when there is something to claim for earlier than was known.
    pub(crate) sooner: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Due times, in steps since the origin, and their subscriptions.
    due: BTreeSet<(u64, SubscriptionId)>,
    /// Subscriptions with more due rows than they had room for, and the turn in which that was reported.
    behind: BTreeMap<SubscriptionId, u64>,
    /// Subscriptions with something in the backlog, apart from suspects, and the turn in which that was
    /// reported.
    held_back: BTreeMap<SubscriptionId, u64>,
    /// Subscriptions with suspects in the backlog, and the turn in which that was reported.
    suspects: BTreeMap<SubscriptionId, u64>,
    /// When subscriptions have something in the backlog that cannot be claimed before, in steps since the
    /// origin, and whether it is suspects.
    later: BTreeSet<(u64, SubscriptionId, bool)>,
    /// When subscriptions are looked at again of which something was locked. It is in `due` or `later`, too.
    again: HashMap<SubscriptionId, u64>,
    /// Whether a subscription has fallen behind since the schedule was read.
    has_news: bool,
    /// Number of times that the schedule was read.
    turn: u64,
    /// Subscriptions that were deleted and may still have rows, and the due time up to which these were
    /// cancelled.
    orphaned: BTreeMap<SubscriptionId, Option<DateTime<Utc>>>,
    /// Due times before which all rows were claimed, by subscription.
    since: HashMap<SubscriptionId, DateTime<Utc>>,
    /// Subscriptions of which rows may have become due in the past since the schedule was read.
    looked_back: HashSet<SubscriptionId>,
    /// Whether that holds for all of them.
    looked_back_all: bool,
    /// Nothing that fell due before is looked for in the index.
    floor: Option<DateTime<Utc>>,
    /// When the delivery fell due that was redriven last, and whether it is still to be tried.
    asked: HashMap<SubscriptionId, (DateTime<Utc>, bool)>,
}

/// The subscriptions to claim for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// Those that may have due rows.
    pub(crate) rows: BTreeSet<SubscriptionId>,
    /// These, and those with something in the backlog.
    pub(crate) all: BTreeSet<SubscriptionId>,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { origin: Instant::now(), state: Mutex::default(), sooner: Notify::new() }
    }
}

impl Schedule {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a due time of a subscription.
    pub(crate) fn note(&self, subscription: SubscriptionId, when: Instant) {
        let step = self.step(when);
        self.change(|state| {
            if state.due.len() < REMEMBERED {
                state.due.insert((step, subscription));
            }
        });
    }

    /// Steps from the origin until then, rounded up.
    fn step(&self, when: Instant) -> u64 {
        u64::try_from(when.saturating_duration_since(self.origin).as_nanos().div_ceil(STEP.as_nanos()))
            .unwrap_or(u64::MAX)
    }

    /// Adds something to claim for, and wakes who waits for a later time.
    fn change(&self, add: impl FnOnce(&mut State)) {
        let is_sooner = {
            let mut state = self.state();
            let before = state.next_step();
            add(&mut state);
            state.next_step().is_some_and(|next| before.is_none_or(|before| next < before))
        };
        if is_sooner {
            self.sooner.notify_one();
        }
    }

    /// Adds a subscription with more due rows than room: claim whenever there is room.
    pub(crate) fn fall_behind(&self, subscription: SubscriptionId) {
        self.change(|state| {
            let is_news = state.behind.insert(subscription, state.turn).is_none();
            state.has_news |= is_news;
        });
    }

    /// Everything due was claimed, or nothing may be sent now. Rows reported since the schedule was read for
    /// this claim stay noted: its statement may not have seen them.
    pub(crate) fn catch_up(&self, subscription: SubscriptionId) {
        let mut state = self.state();
        if state.behind.get(&subscription).is_some_and(|added| *added < state.turn) {
            state.behind.remove(&subscription);
        }
    }

    pub(crate) fn is_behind(&self, subscription: SubscriptionId) -> bool {
        self.state().behind.contains_key(&subscription)
    }

    /// Adds a subscription with something in the backlog: claim whenever there is room.
    pub(crate) fn hold_back(&self, subscription: SubscriptionId, is_suspect: bool) {
        self.change(|state| {
            let turn = state.turn;
            let is_news = state.backlog(is_suspect).insert(subscription, turn).is_none();
            state.has_news |= is_news;
        });
    }

    /// Adds a subscription with something in the backlog that cannot be claimed before `when`.
    pub(crate) fn hold_back_until(&self, subscription: SubscriptionId, is_suspect: bool, when: Instant) {
        let step = self.step(when);
        self.change(|state| {
            if state.later.len() < REMEMBERED {
                state.later.insert((step, subscription, is_suspect));
            }
        });
    }

    /// All of its backlog was claimed, or nothing may be sent now. What was reported since the schedule was
    /// read stays noted. Returns whether it was held back until now.
    pub(crate) fn let_go(&self, subscription: SubscriptionId, is_suspect: bool) -> bool {
        let mut state = self.state();
        let turn = state.turn;
        let held = state.backlog(is_suspect);
        let ends = held.get(&subscription).is_some_and(|added| *added < turn);
        if ends {
            held.remove(&subscription);
        }
        ends
    }

    /// Whether a subscription has something in the backlog, apart from suspects.
    pub(crate) fn is_held_back(&self, subscription: SubscriptionId) -> bool {
        self.state().held_back.contains_key(&subscription)
    }

    /// Whether a subscription has something in the backlog, and whether it has suspects there.
    pub(crate) fn waits(&self, subscription: SubscriptionId) -> (bool, bool) {
        let state = self.state();
        (state.held_back.contains_key(&subscription), state.suspects.contains_key(&subscription))
    }

    /// Number of subscriptions that are behind: the sum of those with due rows, a backlog and suspects.
    pub(crate) fn count_behind(&self) -> usize {
        let state = self.state();
        state.behind.len() + state.held_back.len() + state.suspects.len()
    }

    /// Adds a deleted subscription, whose deliveries are to be cancelled.
    pub(crate) fn orphan(&self, subscription: SubscriptionId) {
        self.state().orphaned.entry(subscription).or_default();
    }

    /// Removes a deleted subscription of which nothing is left.
    pub(crate) fn cancelled(&self, subscription: SubscriptionId) {
        self.state().orphaned.remove(&subscription);
    }

    /// The deliveries of a deleted subscription that were due before `since` are cancelled.
    pub(crate) fn cancelled_until(&self, subscription: SubscriptionId, since: DateTime<Utc>) {
        self.state().orphaned.insert(subscription, Some(since));
    }

    /// Deleted subscriptions whose deliveries are to be cancelled, and from which due time on.
    pub(crate) fn orphans(&self) -> BTreeMap<SubscriptionId, Option<DateTime<Utc>>> {
        self.state().orphaned.clone()
    }

    /// A claim that looked at rows from `from` on has seen all that was due before `since`. Returns false if
    /// rows may have become due in the past since the schedule was read for it: it may not have seen them.
    pub(crate) fn has_seen_all(
        &self,
        subscription: SubscriptionId,
        from: Option<DateTime<Utc>>,
        since: DateTime<Utc>,
    ) -> bool {
        let mut state = self.state();
        let may_lack = state.looked_back_all || state.looked_back.contains(&subscription);
        let has_seen = !may_lack && from == state.since_of(subscription);
        if has_seen {
            state.since.insert(subscription, since);
        }
        has_seen
    }

    /// The due time from which on to claim; `None` for all rows.
    pub(crate) fn since(&self, subscription: SubscriptionId) -> Option<DateTime<Utc>> {
        self.state().since_of(subscription)
    }

    /// Looks for nothing that fell due before `floor`.
    pub(crate) fn narrow(&self, floor: DateTime<Utc>) {
        self.state().floor = Some(floor);
    }

    /// Looks for what fell due at any time.
    pub(crate) fn widen(&self) {
        self.state().floor = None;
    }

    /// The due time before which nothing is looked for; `None`: all are.
    pub(crate) fn floor(&self) -> Option<DateTime<Utc>> {
        self.state().floor
    }

    /// A delivery of this subscription was redriven, and fell due then. Returns whether that is news.
    pub(crate) fn ask(&self, subscription: SubscriptionId, due_at: DateTime<Utc>) -> bool {
        let mut state = self.state();
        let is_news = state.asked.get(&subscription).is_none_or(|(before, _)| *before < due_at);
        if is_news {
            state.asked.insert(subscription, (due_at, true));
        }
        is_news
    }

    /// The due time of a redriven delivery that was not tried, once.
    pub(crate) fn take_asked(&self, subscription: SubscriptionId) -> Option<DateTime<Utc>> {
        let mut state = self.state();
        let (due_at, waits) = state.asked.get_mut(&subscription)?;
        std::mem::take(waits).then_some(*due_at)
    }

    /// A row may have become due in the past: the next claim looks at all rows of this subscription.
    pub(crate) fn look_back(&self, subscription: SubscriptionId) {
        let mut state = self.state();
        state.since.remove(&subscription);
        state.looked_back.insert(subscription);
    }

    /// The next claims look at all rows of all subscriptions.
    pub(crate) fn look_at_everything(&self) {
        let mut state = self.state();
        state.since.clear();
        state.looked_back_all = true;
    }

    /// Removes past due times. Returns the subscriptions for which to claim now.
    pub(crate) fn take_due(&self, now: Instant) -> Due {
        let step = u64::try_from(now.saturating_duration_since(self.origin).as_millis() / STEP.as_millis())
            .unwrap_or(u64::MAX);
        let mut state = self.state();
        let later = state.due.split_off(&(step + 1, SubscriptionId(i64::MIN)));
        let due = std::mem::replace(&mut state.due, later);
        let later = state.later.split_off(&(step + 1, SubscriptionId(i64::MIN), false));
        for (_, subscription, is_suspect) in std::mem::replace(&mut state.later, later) {
            let turn = state.turn;
            state.backlog(is_suspect).insert(subscription, turn);
        }
        state.again.retain(|_, at| *at > step);
        state.has_news = false;
        state.looked_back.clear();
        state.looked_back_all = false;
        state.turn += 1;
        let behind = state.behind.keys().copied();
        let rows: BTreeSet<SubscriptionId> =
            due.into_iter().map(|(_, subscription)| subscription).chain(behind).collect();
        let waiting = state.held_back.keys().chain(state.suspects.keys()).copied();
        Due { all: rows.iter().copied().chain(waiting).collect(), rows }
    }

    /// The next due time, which is past when a subscription has fallen behind since the schedule was read.
    pub(crate) fn next(&self) -> Option<Instant> {
        let step = self.state().next_step()?;
        let millis = u64::try_from(STEP.as_millis()).unwrap_or(1).checked_mul(step)?;
        self.origin.checked_add(Duration::from_millis(millis))
    }
}

impl State {
    fn backlog(&mut self, is_suspect: bool) -> &mut BTreeMap<SubscriptionId, u64> {
        if is_suspect { &mut self.suspects } else { &mut self.held_back }
    }

    fn since_of(&self, subscription: SubscriptionId) -> Option<DateTime<Utc>> {
        self.since.get(&subscription).copied().max(self.floor)
    }

    fn next_step(&self) -> Option<u64> {
        if self.has_news {
            return Some(0);
        }
        let due = self.due.first().map(|(step, _)| *step);
        let later = self.later.first().map(|(step, ..)| *step);
        due.into_iter().chain(later).min()
    }
}
