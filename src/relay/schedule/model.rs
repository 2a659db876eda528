//! Random histories of a table of deliveries, a backlog and a schedule, in virtual time and without a poll:
//! whatever happens, all that is owed is claimed at last, because something says when to claim for it.
//!
//! What the statements do is written here once more, as far as the schedule can notice it. Of rows of
//! subscriptions without an order none is ever locked: only the poll finds those.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

use super::{Schedule, claimed::KeyedRows};
use crate::{
    delivery::SubscriptionId,
    relay::claim::{LATE, NO_ROOM},
    store::Claim,
};

/// Subscriptions without an order, and ordered ones.
const PLAIN: [i64; 2] = [1, 2];
const ORDERED: [i64; 2] = [3, 4];
/// Claims after which all must be claimed, once nothing happens any more.
const CLAIMS: usize = 400;

#[derive(Debug, Clone)]
enum Step {
    /// So many milliseconds pass.
    Pass(u64),
    /// A statement of this relay writes a row that is due so many milliseconds from now. It commits later.
    WriteRow { id: i64, due_in: i64, commits_in: u64 },
    /// Another relay has written one that is due, and tells. It may lie behind suspects that nobody tells of.
    HearOfRow { id: i64, due_before: i64, behind_suspects: bool },
    /// Past events were written as rows of this relay.
    ReadPast { id: i64, due_before: i64 },
    /// This relay adds to the backlog, or another does and tells.
    HoldBack { id: i64, is_suspect: bool },
    /// Somebody locks what waits of a subscription: of its backlog and, if it is ordered, of its rows.
    Lock { id: i64, for_ms: u64 },
    /// A claim begins, with so much room for each. Nothing may be sent now to one of them.
    Begin { room: usize, shut: Option<(i64, u64)> },
    /// It ends: what it has found is known. Whether suspects go back, but for one.
    End { goes_back: bool },
    /// A sweep looks at everything, or a reload at one.
    LookBack { id: Option<i64> },
}

#[derive(Debug, Clone, Copy)]
struct Row {
    id: i64,
    due: i64,
    /// When it becomes visible.
    committed: i64,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    id: i64,
    is_suspect: bool,
}

/// What a claim has found, for one of its subscriptions.
#[derive(Debug)]
enum Found {
    Rows(Claim, usize),
    Keyed(Claim, KeyedRows),
    Backlog { id: i64, is_suspect: bool, took_all_wanted: bool, stays: bool },
    Ordered { id: i64, took: Vec<Kept>, stays: bool },
}

#[derive(Debug)]
struct World {
    schedule: Schedule,
    /// Milliseconds since the origin.
    now: i64,
    /// Rows, and whether each was told of when it was committed.
    rows: Vec<(Row, bool)>,
    backlog: Vec<Kept>,
    locked_until: [i64; 5],
    claim: Option<(i64, Vec<Found>)>,
}

impl World {
    fn new() -> Self {
        Self {
            schedule: Schedule::default(),
            now: 0,
            rows: Vec::new(),
            backlog: Vec::new(),
            locked_until: [0; 5],
            claim: None,
        }
    }

    fn instant(&self, at: i64) -> Instant {
        self.schedule.origin + Duration::from_millis(at.try_into().unwrap_or(0))
    }

    fn time(at: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::milliseconds(at)
    }

    fn is_locked(&self, id: i64) -> bool {
        self.locked_until[usize::try_from(id).unwrap()] > self.now
    }

    fn is_visible(&self, row: &Row) -> bool {
        row.committed <= self.now
    }

    /// Time passes. What is committed meanwhile is noted then.
    fn pass_until(&mut self, then: i64) {
        while let Some(next) = self
            .rows
            .iter_mut()
            .filter(|(row, told)| !told && row.committed <= then)
            .min_by_key(|(row, _)| row.committed)
        {
            next.1 = true;
            let Row { id, due, committed } = next.0;
            self.now = self.now.max(committed);
            let id = SubscriptionId(id);
            // As `Route::note_timed`: it waits from when its statement has answered.
            self.schedule.note(id, self.instant(self.now.max(due)));
            if due < committed - 10_000 {
                self.schedule.look_back(id);
            }
        }
        self.now = self.now.max(then);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Pass(ms) => self.pass_until(self.now + i64::try_from(ms).unwrap()),
            Step::WriteRow { id, due_in, commits_in } => {
                let committed = self.now + i64::try_from(commits_in).unwrap();
                self.rows.push((Row { id, due: self.now + due_in, committed }, false));
                self.pass_until(self.now);
            }
            Step::HearOfRow { id, due_before, behind_suspects } => {
                if behind_suspects && ORDERED.contains(&id) {
                    self.backlog.push(Kept { id, is_suspect: true });
                }
                self.rows.push((Row { id, due: self.now - due_before, committed: self.now }, true));
                self.schedule.look_back(SubscriptionId(id));
                self.schedule.note(SubscriptionId(id), self.instant(self.now));
            }
            Step::ReadPast { id, due_before } => {
                self.rows.push((Row { id, due: self.now - due_before, committed: self.now }, true));
                self.schedule.fall_behind(SubscriptionId(id));
                if due_before > 10_000 {
                    self.schedule.look_back(SubscriptionId(id));
                }
            }
            Step::HoldBack { id, is_suspect } => {
                self.backlog.push(Kept { id, is_suspect });
                self.schedule.hold_back(SubscriptionId(id), is_suspect);
            }
            Step::Lock { id, for_ms } => {
                self.locked_until[usize::try_from(id).unwrap()] = self.now + i64::try_from(for_ms).unwrap();
            }
            Step::Begin { room, shut } => self.begin(room, shut),
            Step::End { goes_back } => self.end(goes_back),
            Step::LookBack { id: Some(id) } => {
                let id = SubscriptionId(id);
                self.schedule.look_back(id);
                self.schedule.note(id, self.instant(self.now));
            }
            Step::LookBack { id: None } => self.schedule.look_at_everything(),
        }
    }

    /// As `Claims::claim_all`: what the statements find, at once for all.
    fn begin(&mut self, room: usize, shut: Option<(i64, u64)>) {
        if self.claim.is_some() {
            return;
        }
        let due = self.schedule.take_due(self.instant(self.now));
        let mut found = Vec::new();
        for id in due.all {
            if let Some((_, for_ms)) = shut.filter(|(shut, _)| *shut == id.0) {
                self.schedule.catch_up(id);
                self.schedule.note(id, self.instant(self.now + i64::try_from(for_ms).unwrap()));
                continue;
            }
            let is_ordered = ORDERED.contains(&id.0);
            if due.rows.contains(&id) && room > 0 {
                let since = self.schedule.since(id);
                let claim = Claim { subscription: id, room: u32::try_from(room).unwrap(), since };
                found.push(if is_ordered { self.claim_keyed(claim) } else { self.claim_rows(claim) });
            } else if due.rows.contains(&id) && !self.schedule.is_behind(id) {
                self.schedule.note(id, self.instant(self.now) + NO_ROOM);
            }
            let (waits, has_suspects) = self.schedule.waits(id);
            if room == 0 {
                continue;
            }
            if is_ordered && (waits || has_suspects) {
                found.push(self.claim_ordered(id.0, room));
            } else {
                found.extend(has_suspects.then(|| self.claim_backlog(id.0, true, room)));
                found.extend((waits && !is_ordered).then(|| self.claim_backlog(id.0, false, room)));
            }
        }
        self.claim = Some((self.now, found));
    }

    /// Takes due rows, the first ones first.
    fn take_rows(&mut self, claim: &Claim, is_free: bool) -> (usize, usize) {
        let is_due = |row: &Row| {
            row.id == claim.subscription.0
                && self.is_visible(row)
                && row.due <= self.now
                && claim.since.is_none_or(|since| Self::time(row.due) >= since)
        };
        let mut due: Vec<usize> = (0..self.rows.len()).filter(|n| is_due(&self.rows[*n].0)).collect();
        due.sort_by_key(|n| self.rows[*n].0.due);
        due.truncate(claim.room as usize);
        let count = due.len();
        if is_free {
            due.sort_unstable_by(|one, other| other.cmp(one));
            due.iter().for_each(|n| _ = self.rows.remove(*n));
        }
        (count, if is_free { count } else { 0 })
    }

    fn claim_rows(&mut self, claim: Claim) -> Found {
        let (_, claimed) = self.take_rows(&claim, true);
        Found::Rows(claim, claimed)
    }

    fn claim_keyed(&mut self, claim: Claim) -> Found {
        let id = claim.subscription.0;
        if self.backlog.iter().any(|kept| kept.id == id && kept.is_suspect) {
            return Found::Keyed(claim, KeyedRows { due: None, claimed: false, wants_keys: false });
        }
        let (due, claimed) = self.take_rows(&claim, !self.is_locked(id));
        Found::Keyed(claim, KeyedRows { due: Some(due), claimed: claimed > 0, wants_keys: false })
    }

    fn claim_backlog(&mut self, id: i64, is_suspect: bool, wanted: usize) -> Found {
        let is_here = |kept: &Kept| kept.id == id && kept.is_suspect == is_suspect;
        let mut took = 0;
        if !self.is_locked(id) {
            self.backlog.retain(|kept| {
                let takes = is_here(kept) && took < wanted;
                took += usize::from(takes);
                !takes
            });
        }
        let stays = took < wanted && self.backlog.iter().any(is_here);
        Found::Backlog { id, is_suspect, took_all_wanted: took >= wanted, stays }
    }

    /// The first of one kind.
    fn claim_ordered(&mut self, id: i64, wanted: usize) -> Found {
        let kinds = self.backlog.iter().filter(|kept| kept.id == id);
        let first = kinds.clone().next().map(|kept| kept.is_suspect);
        let most = if self.is_locked(id) { 0 } else { wanted };
        let count = kinds.take(most).take_while(|kept| Some(kept.is_suspect) == first).count();
        let mut took = Vec::new();
        self.backlog.retain(|kept| {
            let takes = kept.id == id && took.len() < count;
            took.extend(takes.then_some(*kept));
            !takes
        });
        let stays = self.backlog.iter().any(|kept| kept.id == id);
        Found::Ordered { id, took, stays }
    }

    fn end(&mut self, goes_back: bool) {
        let Some((began, found)) = self.claim.take() else { return };
        let before = Self::time(began) - LATE;
        let now = self.instant(self.now);
        for found in found {
            match found {
                Found::Rows(claim, rows) => self.schedule.rows_claimed(&claim, rows, before),
                Found::Keyed(claim, found) => self.schedule.keyed_rows_claimed(&claim, found, before, now),
                Found::Backlog { id, is_suspect, took_all_wanted, stays } => {
                    let id = SubscriptionId(id);
                    self.schedule.backlog_claimed(id, is_suspect, took_all_wanted, stays, now);
                }
                Found::Ordered { id, took, stays } => {
                    let had_suspects = took.first().map(|kept| kept.is_suspect);
                    self.schedule.ordered_backlog_claimed(SubscriptionId(id), had_suspects, stays, now);
                    if goes_back && had_suspects == Some(true) {
                        // As `Claims::keep_one_suspect`, and what settling notes of those.
                        self.backlog.splice(0..0, took.into_iter().skip(1));
                        self.schedule.hold_back(SubscriptionId(id), true);
                    }
                }
            }
        }
    }

    /// Claims when the schedule says so, until it says nothing more. Returns what is still owed.
    fn finish(mut self) -> (Vec<Row>, Vec<Kept>) {
        self.end(true);
        for _ in 0..CLAIMS {
            let commits = self.rows.iter().filter(|(_, told)| !told).map(|(row, _)| row.committed).min();
            let is_behind = self.schedule.count_behind() > 0;
            let next = match self.schedule.next() {
                _ if is_behind => Some(self.now),
                // Rounded up: the schedule counts in steps.
                Some(next) => {
                    let wait = next.saturating_duration_since(self.schedule.origin);
                    Some(i64::try_from(wait.as_millis()).unwrap() + 1)
                }
                None => None,
            };
            let Some(next) = next.into_iter().chain(commits).min() else { break };
            // A claim takes its time, too.
            self.pass_until(next.max(self.now + 1));
            self.begin(3, None);
            self.end(false);
        }
        (self.rows.into_iter().map(|(row, _)| row).collect(), self.backlog)
    }
}

fn any_step() -> impl Strategy<Value = Step> {
    let id = || prop::sample::select([PLAIN, ORDERED].concat());
    prop_oneof![
        4 => (0..200u64).prop_map(Step::Pass),
        1 => (5_000..40_000u64).prop_map(Step::Pass),
        4 => (id(), -300..300i64, 0..50u64)
            .prop_map(|(id, due_in, commits_in)| Step::WriteRow { id, due_in, commits_in }),
        1 => (id(), 0..20_000i64, 0..10_000u64)
            .prop_map(|(id, due_in, commits_in)| Step::WriteRow { id, due_in, commits_in }),
        1 => (id(), 60_000..7_200_000i64, 0..50u64)
            .prop_map(|(id, due_before, commits_in)| Step::WriteRow { id, due_in: -due_before, commits_in }),
        2 => (id(), 0..7_200_000i64, any::<bool>())
            .prop_map(|(id, due_before, behind_suspects)| {
                Step::HearOfRow { id, due_before, behind_suspects }
            }),
        2 => (id(), prop_oneof![Just(0), 0..7_200_000i64])
            .prop_map(|(id, due_before)| Step::ReadPast { id, due_before }),
        4 => (id(), any::<bool>()).prop_map(|(id, is_suspect)| Step::HoldBack { id, is_suspect }),
        2 => (id(), 0..300u64).prop_map(|(id, for_ms)| Step::Lock { id, for_ms }),
        6 => (0..5usize, prop::option::of((id(), 1..500u64)))
            .prop_map(|(room, shut)| Step::Begin { room, shut }),
        6 => any::<bool>().prop_map(|goes_back| Step::End { goes_back }),
        1 => prop::option::of(id()).prop_map(|id| Step::LookBack { id }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn all_that_is_owed_is_claimed_without_a_poll(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        let (rows, backlog) = world.finish();
        let is_all = rows.is_empty() && backlog.is_empty();
        prop_assert!(is_all, "nothing says that these wait: {rows:?} {backlog:?}");
    }
}
