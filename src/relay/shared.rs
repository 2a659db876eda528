//! Limits of several relays together, each of another database: deliveries in flight, and what is leased
//! ahead, in count and bytes. Pure but for a mutex; never decides which delivery begins.
//!
//! Each relay has its own limits besides. While others want nothing it may use nearly all; a part is kept
//! for each of the others, so that one that begins to work finds room at once. When one gets less than its
//! share of those that work, the others begin nothing beyond theirs until it has it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::dispatch;

/// What is kept for each relay, as a part of its equal share of all.
const KEPT: u64 = 4;

/// The limits of all relays of a process.
#[derive(Debug)]
pub(crate) struct Shared(Mutex<State>);

#[derive(Debug)]
struct State {
    in_flight: Pot,
    ahead: Pot,
    bytes: Pot,
    /// Rings for a member that was denied permits when there may be some.
    freed: BTreeMap<u64, Arc<Notify>>,
    next: u64,
}

/// Something of which there is a total, and what each member has of it.
#[derive(Debug)]
struct Pot {
    total: u64,
    parts: BTreeMap<u64, Part>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Part {
    used: u64,
    /// It was denied more, and wants it.
    wants: bool,
}

impl Part {
    fn works(self) -> bool {
        self.used > 0 || self.wants
    }
}

impl Pot {
    fn new(total: u64) -> Self {
        Self { total, parts: BTreeMap::new() }
    }

    fn used(&self) -> u64 {
        self.parts.values().map(|part| part.used).sum()
    }

    /// How much a member may have in all.
    fn limit(&self, member: u64) -> u64 {
        let count = |count: usize| u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        let kept = (self.total / count(self.parts.len()) / KEPT).max(1);
        let others = || self.parts.iter().filter(move |(id, _)| **id != member).map(|(_, part)| *part);
        let free = self.total.saturating_sub(others().map(|part| part.used.max(kept)).sum()).max(kept);
        let working = 1 + others().filter(|part| part.works()).count();
        let share = (self.total / count(working)).max(1);
        let is_short = others().any(|part| part.wants && part.used < share);
        if is_short { free.min(share) } else { free }
    }

    /// How much more a member may take now.
    fn room(&self, member: u64) -> u64 {
        let used = self.parts.get(&member).map_or(0, |part| part.used);
        self.limit(member).saturating_sub(used).min(self.total.saturating_sub(self.used()))
    }

    fn take(&mut self, member: u64, wanted: u64) -> u64 {
        let taken = self.room(member).min(wanted);
        let part = self.parts.entry(member).or_default();
        part.used += taken;
        part.wants = taken == 0;
        taken
    }
}

impl Shared {
    /// Limits for `permits` deliveries in flight in all relays together.
    #[cfg_attr(not(feature = "cli"), expect(dead_code, reason = "only the program has several relays"))]
    pub(crate) fn new(permits: u32) -> Arc<Self> {
        let (ahead, bytes) = dispatch::most_ahead(permits);
        Self::with(permits, ahead, bytes)
    }

    /// Limits: `permits` deliveries in flight, `ahead` deliveries leased ahead, and their `bytes`.
    fn with(permits: u32, ahead: usize, bytes: usize) -> Arc<Self> {
        let pot = |total: usize| Pot::new(u64::try_from(total).unwrap_or(u64::MAX));
        Arc::new(Self(Mutex::new(State {
            in_flight: Pot::new(permits.into()),
            ahead: pot(ahead),
            bytes: pot(bytes),
            freed: BTreeMap::new(),
            next: 0,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more relay takes part, until the member is dropped.
    pub(super) fn join(self: &Arc<Self>) -> Member {
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        let freed = Arc::new(Notify::new());
        state.freed.insert(id, freed.clone());
        for pot in state.pots() {
            pot.parts.insert(id, Part::default());
        }
        drop(state);
        Member { shared: self.clone(), id, freed }
    }
}

impl State {
    fn pots(&mut self) -> [&mut Pot; 3] {
        [&mut self.in_flight, &mut self.ahead, &mut self.bytes]
    }

    /// Rings for members that want permits and may take some.
    fn ring(&self) {
        for (id, part) in &self.in_flight.parts {
            if part.wants
                && self.in_flight.room(*id) > 0
                && let Some(freed) = self.freed.get(id)
            {
                freed.notify_one();
            }
        }
    }
}

/// The part of one relay. What it has is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Member {
    shared: Arc<Shared>,
    id: u64,
    freed: Arc<Notify>,
}

impl Member {
    /// Takes permits for up to `wanted` deliveries that begin. With none it is rung for later.
    pub(super) fn take(&self, wanted: u32) -> u32 {
        let taken = self.shared.state().in_flight.take(self.id, wanted.into());
        u32::try_from(taken).unwrap_or(wanted)
    }

    /// Gives permits back.
    pub(super) fn give(&self, count: u32) {
        let mut state = self.shared.state();
        if let Some(part) = state.in_flight.parts.get_mut(&self.id) {
            part.used = part.used.saturating_sub(count.into());
        }
        state.ring();
    }

    /// It wants no more permits than it has.
    pub(super) fn wants_nothing(&self) {
        let mut state = self.shared.state();
        let part = state.in_flight.parts.get_mut(&self.id);
        if part.is_some_and(|part| std::mem::take(&mut part.wants)) {
            state.ring();
        }
    }

    /// Says what it has leased ahead, in count and bytes. Returns how much of each it may have.
    pub(super) fn leased(&self, ahead: usize, bytes: usize) -> (usize, usize) {
        let mut state = self.shared.state();
        let mut limit = |pot: fn(&mut State) -> &mut Pot, used: usize| {
            let pot = pot(&mut state);
            pot.parts.entry(self.id).or_default().used = u64::try_from(used).unwrap_or(u64::MAX);
            usize::try_from(pot.limit(self.id)).unwrap_or(usize::MAX)
        };
        (limit(|state| &mut state.ahead, ahead), limit(|state| &mut state.bytes, bytes))
    }

    /// Rung when it was denied permits and there may be some.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        for pot in state.pots() {
            pot.parts.remove(&self.id);
        }
        state.freed.remove(&self.id);
        state.ring();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alone_one_may_use_all_and_beside_idle_ones_all_but_what_is_kept_for_them() {
        let shared = Shared::with(100, 1_000, 10_000);
        let one = shared.join();
        assert_eq!(one.take(200), 100);
        one.give(100);
        let other = shared.join();
        assert_eq!(one.take(200), 88, "a quarter of the other's half is kept for it");
        assert_eq!(other.take(200), 12, "which it gets at once");
        assert_eq!((one.take(1), other.take(1)), (0, 0), "the limit for all is kept");
    }

    #[test]
    fn one_that_has_less_than_its_share_gets_what_comes_back_until_it_has_it() {
        let shared = Shared::with(100, 1_000, 10_000);
        let (greedy, other) = (shared.join(), shared.join());
        greedy.take(100);
        other.take(100);
        for _ in 0..100 {
            greedy.give(1);
            greedy.take(1);
            other.take(1);
        }
        let used = |member: &Member| shared.state().in_flight.parts[&member.id].used;
        assert_eq!((used(&greedy), used(&other)), (50, 50));
        other.give(50);
        other.wants_nothing();
        assert_eq!(greedy.take(100), 38, "what the other does not want is used");
    }

    #[test]
    fn idle_ones_do_not_count_for_the_shares_of_those_that_work() {
        let shared = Shared::with(1_000, 1_000, 10_000);
        let members: Vec<Member> = (0..20).map(|_| shared.join()).collect();
        let kept = 12 * 18;
        for _ in 0..1_000 {
            members[0].take(1);
            members[1].take(1);
        }
        let used = |at: usize| shared.state().in_flight.parts[&members[at].id].used;
        assert_eq!((used(0) + used(1), used(0).abs_diff(used(1)) <= 1), (1_000 - kept, true));
    }

    #[test]
    fn fewer_permits_than_relays_are_shared_too() {
        let shared = Shared::with(2, 10, 10);
        let members: Vec<Member> = (0..5).map(|_| shared.join()).collect();
        let taken: Vec<u32> = members.iter().map(|member| member.take(8)).collect();
        assert_eq!(taken.iter().sum::<u32>(), 2, "{taken:?}");
        let first = taken.iter().position(|taken| *taken > 0).unwrap();
        members[first].give(taken[first]);
        let denied = taken.iter().position(|taken| *taken == 0).unwrap();
        assert_eq!(members[denied].take(1), 1, "one that was denied gets it");
    }

    #[test]
    fn what_a_relay_had_that_ended_comes_back_and_who_waits_for_it_is_rung_for() {
        let shared = Shared::with(10, 10, 10);
        let one = shared.join();
        one.take(10);
        let other = shared.join();
        assert_eq!(other.take(1), 0);
        drop(one);
        assert!(futures_util::FutureExt::now_or_never(other.freed()).is_some());
        assert_eq!(other.take(20), 10);
    }

    #[test]
    fn what_is_leased_ahead_by_all_stays_within_the_limit_for_all() {
        let shared = Shared::with(10, 1_000, 1_000);
        let members: Vec<Member> = (0..4).map(|_| shared.join()).collect();
        let mut has = [0; 4];
        for round in 0..8 {
            let at = round % 4;
            has[at] = members[at].leased(has[at], 0).0;
            members[at].leased(has[at], 0);
            assert!(has.iter().sum::<usize>() <= 1_000, "{has:?}");
        }
        assert!(has.iter().all(|has| *has >= 62), "{has:?}: a quarter of its share for each");
    }
}
