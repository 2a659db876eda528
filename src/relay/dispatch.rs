//! What this relay holds and has not begun, and who may begin next.
//!
//! Three numbers: *leased ahead* waits here and costs a killed relay no copy; *in flight* has begun; *unsettled* has been answered
//! and is not recorded. Permits bound the last two together, which is what a kill can repeat; leased ahead is bounded in count and
//! bytes. Each subscription has a queue: what waits for it, and a window that it earns with answers.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::delivery::Delivery;
use super::{
    concurrency::{Answer, Window},
    fair::Fair,
    held::Held,
};
use crate::{sink::Batch, subscription::Subscription};

/// Leased ahead beyond the permits: so many times as much,
const AHEAD: u32 = 4;
/// at least
const AHEAD_AT_LEAST: usize = 1_024;
/// and so many bytes of events.
const AHEAD_BYTES: usize = 48 * 1024 * 1024;
/// Leased by one claim at most.
const CLAIMED_AT_ONCE: usize = 2_000;
/// Any subscription may begin, and have leased ahead, so many, whatever the others have.
const HANDFUL: usize = 8;
/// Leased ahead for a subscription that is not known to take more.
const AHEAD_UNKNOWN: usize = 256;
/// A subscription has leased ahead what it takes within this time (seconds).
const AHEAD_FOR: f64 = 0.5;
/// What has waited so long goes back, for other relays or a better time.
pub(super) const TOO_OLD: Duration = Duration::from_secs(2);
/// Suspects in flight at once.
const SUSPECTS: u32 = 8;

/// A delivery this relay holds.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) delivery: Delivery,
    pub(super) held: Held,
    /// False: the event, or its large payload, is read when it begins.
    pub(super) payload_read: bool,
    pub(super) bytes: usize,
    pub(super) queued: Instant,
    /// Goes before what has waited longer.
    pub(super) is_urgent: bool,
}

impl Job {
    /// How many relays seem to have died of it.
    pub(super) fn blame(&self) -> u32 {
        match &self.held {
            Held::Page(page, _) if page.deaths >= 2 => u32::from(page.deaths >= 3) + 1,
            Held::Page(..) => 0,
            Held::Row(_) => self.delivery.unfinished,
        }
    }

    /// Whether it is given up unsent.
    pub(super) fn is_deadly(&self) -> bool {
        match &self.held {
            Held::Page(page, _) => page.deaths >= 3 && page.alone >= 2,
            Held::Row(_) => self.delivery.unfinished >= 3,
        }
    }
}

/// Deliveries of one subscription that begin together.
#[derive(Debug)]
pub(super) struct Attempt {
    pub(super) subscription: Arc<Subscription>,
    pub(super) jobs: Vec<Job>,
    pub(super) began: Instant,
    suspect: Option<Suspect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspect {
    Few,
    Alone,
}

/// What may begin now.
#[derive(Debug, Default)]
pub(super) struct Begin {
    pub(super) begun: Vec<Attempt>,
    /// When to look again for a batch that gathers.
    pub(super) later: Option<Instant>,
}

/// What stands in the way of a subscription as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Free,
    /// One may be tried.
    Probe,
    Blocked,
}

/// How many deliveries one claim may still lease.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

impl Budget {
    pub(super) fn spend(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left == 0
    }
}

/// The three numbers, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) ahead: usize,
    pub(super) ahead_bytes: usize,
    pub(super) in_flight: u32,
    pub(super) unsettled: u32,
}

/// All queues of a relay.
#[derive(Debug)]
pub(super) struct Dispatch {
    state: Mutex<State>,
    permits: u32,
    per_subscription: u32,
    most_ahead: usize,
    /// Rings when there may be room again for what was denied.
    pub(super) room: Notify,
}

#[derive(Debug, Default)]
struct State {
    queues: HashMap<i64, Queue>,
    organizations: HashMap<Option<String>, u32>,
    fair: Fair,
    /// Kept from beginning by the others: listed again when permits come back.
    parked: Vec<i64>,
    suspects: VecDeque<Job>,
    suspects_few: u32,
    suspects_alone: u32,
    numbers: Numbers,
    /// In flight for subscriptions that are not known to answer.
    unproven: u32,
    /// Somebody was denied room ahead.
    denied: bool,
    stopped: bool,
    /// Among how many subscriptions all is shared.
    sharers: usize,
}

#[derive(Debug)]
struct Queue {
    subscription: Arc<Subscription>,
    organization: u32,
    window: Window,
    /// Goes first: retries and what has a due time of its own.
    rows: VecDeque<Job>,
    queue: VecDeque<Job>,
    in_flight: u32,
    batches: usize,
    unproven: u32,
    /// Since when something is in flight without an answer.
    waits_since: Option<Instant>,
    /// Since when the first of a batch waits.
    since: Option<Instant>,
    listed: bool,
    denied: bool,
}

impl Queue {
    fn waiting(&self) -> usize {
        self.rows.len() + self.queue.len()
    }

    fn batch(&self) -> Option<Batch> {
        self.subscription.outlet.batch()
    }

    fn is_known(&self, now: Instant) -> bool {
        self.window.is_proven(now) && !self.window.is_silent(self.waits_since, now)
    }

    /// How many may be leased ahead for it.
    fn most_ahead(&self, now: Instant) -> usize {
        let batch = self.batch().map_or(0, |batch| batch.max * (batch.in_flight + 1));
        if self.window.is_silent(self.waits_since, now) {
            return HANDFUL.saturating_sub(self.in_flight as usize);
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let earned = (self.window.rate() * AHEAD_FOR) as usize;
        earned.max(AHEAD_UNKNOWN).max(batch)
    }
}

impl Dispatch {
    pub(super) fn new(permits: u32, per_subscription: u32) -> Self {
        let most_ahead = AHEAD_AT_LEAST.max(permits.saturating_mul(AHEAD) as usize);
        Self {
            state: Mutex::default(),
            permits,
            per_subscription: per_subscription.min(permits),
            most_ahead,
            room: Notify::new(),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn numbers(&self) -> Numbers {
        self.state().numbers
    }

    pub(super) fn free_permits(&self) -> u32 {
        let numbers = self.numbers();
        self.permits.saturating_sub(numbers.in_flight + numbers.unsettled)
    }

    /// How many subscriptions may be sent to.
    pub(super) fn share_among(&self, subscriptions: usize) {
        self.state().sharers = subscriptions;
    }

    /// How many more may be leased ahead for a subscription.
    pub(super) fn room(&self, subscription: &Arc<Subscription>, now: Instant) -> usize {
        let mut state = self.state();
        let room = state.room(self, subscription, now);
        if room == 0 {
            state.deny(subscription.row.id);
        }
        room
    }

    /// What one claim may lease for all subscriptions together.
    pub(super) fn budget(&self) -> Budget {
        Budget { left: self.free_ahead().clamp(HANDFUL, CLAIMED_AT_ONCE) }
    }

    /// How much more of a backlog may be leased for a subscription: who is not known to answer gets what can begin at once.
    pub(super) fn room_behind(
        &self,
        subscription: &Arc<Subscription>,
        now: Instant,
        budget: &Budget,
    ) -> usize {
        let room = self.room(subscription, now).min(budget.left);
        let known = self.state().queues.get(&subscription.row.id).is_some_and(|queue| queue.is_known(now));
        if known || room == 0 { room } else { room.min(self.room_to_begin(subscription, now, budget)) }
    }

    /// How many rows of a subscription could begin at once.
    pub(super) fn room_to_begin(
        &self,
        subscription: &Arc<Subscription>,
        now: Instant,
        budget: &Budget,
    ) -> usize {
        let mut state = self.state();
        let free = self.permits.saturating_sub(state.numbers.in_flight + state.numbers.unsettled) as usize;
        let Some(queue) = state.queues.get(&subscription.row.id) else {
            let handful = HANDFUL.max(subscription.outlet.batch().map_or(0, |batch| batch.max));
            return free.max(1).min(handful).min(budget.left);
        };
        let (mine, waiting) = (queue.in_flight as usize, queue.rows.len());
        let limit = match queue.batch() {
            Some(batch) => batch.max * (batch.in_flight + 1),
            None => self.width(queue) as usize,
        };
        let limit = if queue.is_known(now) {
            limit
        } else {
            limit.min(HANDFUL.max(queue.batch().map_or(0, |batch| batch.max)))
        };
        let room = limit
            .saturating_sub(mine + waiting)
            .min(free.max(usize::from(mine + waiting == 0)))
            .min(budget.left);
        if room == 0 {
            state.deny(subscription.row.id);
        }
        room
    }

    /// How many more may be leased ahead.
    pub(super) fn free_ahead(&self) -> usize {
        self.most_ahead.saturating_sub(self.state().numbers.ahead)
    }

    /// Whether no more may be leased ahead at all.
    pub(super) fn is_full(&self) -> bool {
        let mut state = self.state();
        let full = state.numbers.ahead >= self.most_ahead * 2 || state.numbers.ahead_bytes >= AHEAD_BYTES;
        state.denied |= full;
        full
    }

    fn width(&self, queue: &Queue) -> u32 {
        queue.window.width().min(self.ceiling(&queue.subscription))
    }

    fn ceiling(&self, subscription: &Subscription) -> u32 {
        subscription.own_limit().unwrap_or(self.per_subscription).min(self.permits)
    }

    /// Deliveries that this relay holds now.
    pub(super) fn add(&self, jobs: impl IntoIterator<Item = Job>) {
        let mut guard = self.state();
        let state = &mut *guard;
        for job in jobs {
            state.numbers.ahead += 1;
            state.numbers.ahead_bytes += job.bytes;
            if job.blame() > 0 {
                state.suspects.push_back(job);
                continue;
            }
            let id = job.delivery.subscription.row.id;
            let queue = self.queue(&mut state.queues, &mut state.organizations, &job.delivery.subscription);
            queue.since.get_or_insert(job.queued);
            if job.is_urgent {
                queue.rows.push_back(job);
            } else {
                queue.queue.push_back(job);
            }
            if !queue.listed {
                queue.listed = true;
                state.fair.add(queue.organization, id);
            }
        }
    }

    fn queue<'s>(
        &self,
        queues: &'s mut HashMap<i64, Queue>,
        organizations: &mut HashMap<Option<String>, u32>,
        subscription: &Arc<Subscription>,
    ) -> &'s mut Queue {
        queues.entry(subscription.row.id).or_insert_with(|| {
            let next = u32::try_from(organizations.len()).unwrap_or(u32::MAX);
            let organization = match organizations.get(&subscription.row.organization) {
                Some(known) => *known,
                None => *organizations.entry(subscription.row.organization.clone()).or_insert(next),
            };
            Queue {
                subscription: subscription.clone(),
                organization,
                window: Window::new(self.ceiling(subscription), Instant::now()),
                rows: VecDeque::new(),
                queue: VecDeque::new(),
                in_flight: 0,
                batches: 0,
                unproven: 0,
                waits_since: None,
                since: None,
                listed: false,
                denied: false,
            }
        })
    }

    /// What may begin now. `way`: what stands in the way of a subscription.
    pub(super) fn begin(&self, now: Instant, way: &dyn Fn(&Subscription) -> Way) -> Begin {
        let mut begin = Begin::default();
        let mut guard = self.state();
        let state = &mut *guard;
        if state.stopped {
            return begin;
        }
        self.begin_suspects(state, now, way, &mut begin);
        let alone = state.sharers <= 1;
        while let Some(id) = state.fair.current() {
            let taken = state.numbers.in_flight + state.numbers.unsettled;
            if taken >= self.permits {
                break;
            }
            let free = self.permits - taken;
            let Some(queue) = state.queues.get_mut(&id) else {
                state.fair.set_aside();
                continue;
            };
            let known = queue.is_known(now);
            if !known && queue.unproven < queue.in_flight {
                // It answered once and does not now: what it holds counts among those that do not answer.
                state.unproven += queue.in_flight - queue.unproven;
                queue.unproven = queue.in_flight;
            }
            let batch = queue.batch();
            let width = self.width(queue);
            let own_room = match batch {
                Some(batch) if queue.batches >= batch.in_flight.max(1) => 0,
                Some(batch) => batch.max,
                None => width.saturating_sub(queue.in_flight) as usize,
            };
            if queue.waiting() == 0 || own_room == 0 {
                queue.listed = false;
                state.fair.set_aside();
                continue;
            }
            let shared_room = if known {
                self.for_known(free, queue.in_flight, alone)
            } else {
                self.for_unknown(free, queue, state.unproven, alone)
            };
            if shared_room == 0 {
                queue.listed = false;
                state.parked.push(id);
                state.fair.set_aside();
                continue;
            }
            let mut most = own_room.min(shared_room as usize).min(free as usize);
            match way(&queue.subscription) {
                Way::Free => {}
                Way::Probe if queue.in_flight == 0 => most = 1,
                // What it has leased ahead goes back when it gets old.
                Way::Probe | Way::Blocked => {
                    queue.listed = false;
                    state.fair.set_aside();
                    continue;
                }
            }
            let jobs = match batch {
                None => take_one(queue),
                Some(batch) => match take_batch(queue, &batch, most, now) {
                    Ok(jobs) => jobs,
                    Err(until) => {
                        begin.later = Some(begin.later.map_or(until, |then| then.min(until)));
                        queue.listed = false;
                        state.fair.set_aside();
                        continue;
                    }
                },
            };
            let count = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
            if count == 0 {
                queue.listed = false;
                state.fair.set_aside();
                continue;
            }
            queue.in_flight += count;
            queue.batches += 1;
            queue.waits_since.get_or_insert(now);
            queue.window.begin(queue.in_flight, now);
            if !known {
                queue.unproven += count;
                state.unproven += count;
            }
            state.numbers.in_flight += count;
            state.numbers.ahead -= jobs.len();
            state.numbers.ahead_bytes -= jobs.iter().map(|job| job.bytes).sum::<usize>();
            let half = queue.most_ahead(now) / 2;
            let wakes = std::mem::take(&mut state.denied)
                && (state.numbers.ahead <= self.most_ahead * 3 / 4
                    || queue.denied && queue.waiting() <= half);
            if wakes {
                queue.denied = false;
                self.room.notify_one();
            } else {
                state.denied |= queue.denied;
            }
            begin.begun.push(Attempt {
                subscription: queue.subscription.clone(),
                jobs,
                began: now,
                suspect: None,
            });
            state.fair.spend(count as usize);
        }
        begin
    }

    /// Suspects wait without permits, begin a few at a time, and the worst alone.
    fn begin_suspects(
        &self,
        state: &mut State,
        now: Instant,
        way: &dyn Fn(&Subscription) -> Way,
        begin: &mut Begin,
    ) {
        for _ in 0..state.suspects.len() {
            if state.numbers.in_flight + state.numbers.unsettled >= self.permits {
                return;
            }
            let Some(job) = state.suspects.pop_front() else { return };
            let suspect = if job.blame() == 1 { Suspect::Few } else { Suspect::Alone };
            let may = job.is_deadly()
                || match suspect {
                    Suspect::Few => state.suspects_alone == 0 && state.suspects_few < SUSPECTS,
                    Suspect::Alone => state.suspects_alone + state.suspects_few == 0,
                };
            if !may || way(&job.delivery.subscription) == Way::Blocked {
                state.suspects.push_back(job);
                continue;
            }
            match suspect {
                Suspect::Few => state.suspects_few += 1,
                Suspect::Alone => state.suspects_alone += 1,
            }
            state.numbers.in_flight += 1;
            state.numbers.ahead -= 1;
            state.numbers.ahead_bytes -= job.bytes;
            let subscription = match state.queues.get(&job.delivery.subscription.row.id) {
                Some(queue) => queue.subscription.clone(),
                None => job.delivery.subscription.clone(),
            };
            begin.begun.push(Attempt { subscription, jobs: vec![job], began: now, suspect: Some(suspect) });
        }
    }

    /// Who has a handful in flight leaves the last quarter of the permits to those who have less.
    fn for_known(&self, free: u32, in_flight: u32, alone: bool) -> u32 {
        let reserve = if alone {
            0
        } else if in_flight >= HANDFUL as u32 {
            self.permits / 4
        } else if in_flight >= 2 {
            self.permits / 16
        } else {
            0
        };
        free.saturating_sub(reserve)
    }

    /// Who is not known to answer has a handful, and all such together half of the permits.
    fn for_unknown(&self, free: u32, queue: &Queue, unproven: u32, alone: bool) -> u32 {
        if alone {
            return free;
        }
        let mine = match queue.batch() {
            Some(batch) => u32::try_from(batch.max).unwrap_or(u32::MAX),
            None if unproven < self.permits / 8 => 8,
            None if unproven < self.permits / 4 => 4,
            None => 1,
        };
        let half = (self.permits / 2).max(1);
        // Who has nothing in flight gets one of the other half, but for the last quarter.
        let together = if queue.in_flight == 0 { self.permits * 3 / 4 } else { half };
        let left =
            if queue.in_flight == 0 && self.permits < 8 { free } else { together.saturating_sub(unproven) };
        mine.saturating_sub(queue.in_flight).min(left).min(free)
    }

    /// A attempt has ended; its deliveries are unsettled now. `answer`: what it says of the destination's room.
    pub(super) fn ended(&self, attempt: &Ended, answer: Option<Answer>, now: Instant) {
        let mut guard = self.state();
        let state = &mut *guard;
        let count = attempt.count;
        state.numbers.in_flight -= count;
        state.numbers.unsettled += count;
        match attempt.suspect {
            Some(Suspect::Few) => state.suspects_few -= 1,
            Some(Suspect::Alone) => state.suspects_alone -= 1,
            None => {
                let Some(queue) = state.queues.get_mut(&attempt.subscription) else { return };
                queue.in_flight -= count;
                queue.batches = queue.batches.saturating_sub(1);
                queue.waits_since = (queue.in_flight > 0).then_some(now);
                if let Some(answer) = answer {
                    queue.window.end(answer, attempt.began, now);
                }
                let counted =
                    if answer == Some(Answer::Success) { queue.unproven } else { queue.unproven.min(count) };
                let counted = if queue.in_flight == 0 { queue.unproven } else { counted };
                queue.unproven -= counted;
                state.unproven -= counted;
                if !queue.listed && queue.waiting() > 0 {
                    queue.listed = true;
                    state.fair.add(queue.organization, attempt.subscription);
                }
                if queue.denied && queue.waiting() == 0 {
                    queue.denied = false;
                    self.room.notify_one();
                }
            }
        }
    }

    /// So many deliveries are recorded: their permits come back.
    pub(super) fn settled(&self, count: u32) {
        let mut guard = self.state();
        let state = &mut *guard;
        state.numbers.unsettled = state.numbers.unsettled.saturating_sub(count);
        for id in std::mem::take(&mut state.parked) {
            relist(state, id);
        }
        if state.denied {
            self.room.notify_one();
        }
    }

    /// What stood in the way of a subscription is gone, or a batch has gathered long enough.
    pub(super) fn look_again(&self, subscription: Option<i64>) {
        let mut guard = self.state();
        let state = &mut *guard;
        match subscription {
            Some(id) => relist(state, id),
            None => {
                let waiting: Vec<i64> = state
                    .queues
                    .iter()
                    .filter(|(_, queue)| !queue.listed && queue.waiting() > 0)
                    .map(|(id, _)| *id)
                    .collect();
                state.parked.clear();
                waiting.into_iter().for_each(|id| relist(state, id));
            }
        }
    }

    /// Takes out what has waited for too long, and what waits for subscriptions of which `way` says so.
    pub(super) fn take_back(&self, now: Instant, gone: &dyn Fn(&Subscription) -> bool) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut back = Vec::new();
        for queue in state.queues.values_mut() {
            let all = gone(&queue.subscription);
            // Who is listed only waits for its turn.
            let is_old = |job: &Job| all || !queue.listed && now.duration_since(job.queued) >= TOO_OLD;
            while queue.queue.front().is_some_and(is_old) {
                back.extend(queue.queue.pop_front());
            }
            if all {
                back.extend(queue.rows.drain(..));
            }
        }
        state.took_back(&back);
        if !back.is_empty() {
            self.room.notify_one();
        }
        back
    }

    /// Nothing begins any more; what has not begun is given back.
    pub(super) fn stop(&self) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.stopped = true;
        let mut back: Vec<Job> = state.suspects.drain(..).collect();
        for queue in state.queues.values_mut() {
            back.extend(queue.rows.drain(..));
            back.extend(queue.queue.drain(..));
        }
        state.took_back(&back);
        back
    }

    /// Subscriptions have changed: nothing begins under an old version.
    pub(super) fn follow<'i>(&self, current: impl Fn(i64) -> Option<&'i Arc<Subscription>>) -> Vec<Job> {
        let mut guard = self.state();
        let state = &mut *guard;
        let mut back = Vec::new();
        let mut left = Vec::new();
        for (id, queue) in &mut state.queues {
            match current(*id) {
                Some(now) => {
                    if !Arc::ptr_eq(now, &queue.subscription) {
                        queue.subscription = now.clone();
                        queue
                            .window
                            .set_ceiling(now.own_limit().unwrap_or(self.per_subscription).min(self.permits));
                    }
                    if !now.may_send() {
                        back.extend(queue.rows.drain(..));
                        back.extend(queue.queue.drain(..));
                    }
                }
                None => {
                    back.extend(queue.rows.drain(..));
                    back.extend(queue.queue.drain(..));
                    if queue.in_flight == 0 && !queue.listed {
                        left.push(*id);
                    }
                }
            }
        }
        for id in left {
            if let Some(queue) = state.queues.remove(&id) {
                state.unproven -= queue.unproven;
            }
        }
        state.took_back(&back);
        back
    }
}

/// What is remembered of a attempt while its deliveries are reported.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    subscription: i64,
    count: u32,
    began: Instant,
    suspect: Option<Suspect>,
}

impl Attempt {
    pub(super) fn to_end(&self) -> Ended {
        let count = u32::try_from(self.jobs.len()).unwrap_or(u32::MAX);
        Ended { subscription: self.subscription.row.id, count, began: self.began, suspect: self.suspect }
    }
}

fn relist(state: &mut State, id: i64) {
    if let Some(queue) = state.queues.get_mut(&id)
        && !queue.listed
        && queue.waiting() > 0
    {
        queue.listed = true;
        state.fair.add(queue.organization, id);
    }
}

impl State {
    fn took_back(&mut self, jobs: &[Job]) {
        self.numbers.ahead -= jobs.len();
        self.numbers.ahead_bytes -= jobs.iter().map(|job| job.bytes).sum::<usize>();
    }

    fn deny(&mut self, subscription: i64) {
        self.denied = true;
        if let Some(queue) = self.queues.get_mut(&subscription) {
            queue.denied = true;
        }
    }

    fn room(&self, dispatch: &Dispatch, subscription: &Arc<Subscription>, now: Instant) -> usize {
        let (mine, most) = match self.queues.get(&subscription.row.id) {
            Some(queue) => (queue.queue.len(), queue.most_ahead(now)),
            None => (
                0,
                AHEAD_UNKNOWN
                    .max(subscription.outlet.batch().map_or(0, |batch| batch.max * (batch.in_flight + 1))),
            ),
        };
        let sharers = self.sharers.max(1);
        let known = self.queues.get(&subscription.row.id).is_some_and(|queue| queue.is_known(now));
        let handful = if known || self.numbers.ahead < dispatch.most_ahead {
            HANDFUL.min(most).min((dispatch.most_ahead / sharers).max(1)).saturating_sub(mine)
        } else {
            0
        };
        if self.numbers.ahead_bytes >= AHEAD_BYTES {
            return handful.min(1);
        }
        let fair = (dispatch.most_ahead / sharers).saturating_sub(mine);
        let reserve = if sharers > 1 { dispatch.most_ahead / 4 } else { 0 };
        let free = dispatch.most_ahead.saturating_sub(self.numbers.ahead + reserve);
        most.saturating_sub(mine).min(fair.max(free)).max(handful)
    }
}

fn take_one(queue: &mut Queue) -> Vec<Job> {
    let job = queue.rows.pop_front().or_else(|| queue.queue.pop_front());
    job.into_iter().collect()
}

/// The next batch. `Err`: it still grows, until then.
fn take_batch(queue: &mut Queue, batch: &Batch, most: usize, now: Instant) -> Result<Vec<Job>, Instant> {
    // Nobody's last attempt may fail because of another's event.
    let goes_alone = |job: &Job| {
        batch.shares_fate && (job.delivery.attempt > 1 || job.delivery.subscription.retry.max_attempts <= 1)
    };
    let limit = batch.max.min(most).max(1);
    let (mut count, mut bytes, mut full) = (0, 0, false);
    for job in queue.rows.iter().chain(&queue.queue) {
        bytes += job.bytes.max(job.delivery.event.payload.len());
        if count > 0 && (goes_alone(job) || bytes > batch.bytes) {
            full = true;
            break;
        }
        count += 1;
        if count >= limit || goes_alone(job) {
            full = true;
            break;
        }
    }
    let until = queue.since.unwrap_or(now) + batch.wait;
    if !full && now < until {
        return Err(until);
    }
    let mut jobs = Vec::with_capacity(count);
    for _ in 0..count {
        jobs.extend(queue.rows.pop_front().or_else(|| queue.queue.pop_front()));
    }
    queue.since = (queue.waiting() > 0).then_some(now);
    Ok(jobs)
}
