//! What happens, drawn from a seed: subscriptions, publishers, faults, and the end of all faults.

use std::{collections::VecDeque, sync::Arc};

use pgoutbox::{
    delivery::SubscriptionId,
    event::{Event, Position},
    sink::Registry,
    store::{Ordering, SubscriptionRow},
    subscription::Subscription,
};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};
use uuid::Uuid;

use super::{
    checker::{Commit, Wish},
    clock::Act,
    database::{Millis, date},
    defect::Defect,
    world::World,
};

/// Until then transactions begin and faults happen.
const STORMY: Millis = 16_000;
/// Then all faults end.
const HEALED: Millis = 20_000;
/// A relay that is away for so long keeps its leases.
const SHORT: Millis = 2_000;
/// Attempts of a delivery.
pub(crate) const MAX_ATTEMPTS: u32 = 6;

/// How this history is.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) relays: usize,
    pub(crate) permits: usize,
    /// Events that a routing step reads at most, and positions that it looks at.
    pub(crate) page: usize,
    pub(crate) positions: i64,
    pub(crate) polls: bool,
    /// How often a statement or its answer is lost.
    pub(crate) losses: f64,
    pub(crate) failures: f64,
    pub(crate) redirects: f64,
    pub(crate) breaks: f64,
    pub(crate) hangs: f64,
    pub(crate) slow: f64,
    /// The subscription whose address is inside.
    pub(crate) inside: Option<i64>,
    /// The event that kills whoever sends it.
    pub(crate) poison: Option<Uuid>,
    transactions: usize,
    faults: usize,
    asynchronous: f64,
    /// How often the server crashes soon after an asynchronous commit.
    crashes: f64,
}

impl Weather {
    pub(crate) fn draw(random: &mut StdRng) -> Self {
        let sometimes = |random: &mut StdRng, often: f64, most: f64| {
            if random.random_bool(often) { random.random_range(0.0..most) } else { 0.0 }
        };
        Self {
            relays: random.random_range(1..=3),
            permits: random.random_range(2..=5),
            page: random.random_range(2..=12),
            positions: random.random_range(3..=40),
            polls: random.random_bool(0.8),
            losses: sometimes(random, 0.4, 0.08),
            failures: sometimes(random, 0.6, 0.3),
            redirects: sometimes(random, 0.2, 0.1),
            breaks: sometimes(random, 0.3, 0.1),
            hangs: sometimes(random, 0.3, 0.15),
            slow: if random.random_bool(0.1) { 1.0 } else { sometimes(random, 0.5, 0.5) },
            inside: random.random_bool(0.1).then_some(4),
            poison: random.random_bool(0.08).then(|| Uuid::from_u128(random.random())),
            transactions: random.random_range(4..=16),
            faults: random.random_range(0..=3),
            asynchronous: if random.random_bool(0.5) { 0.5 } else { 0.0 },
            crashes: if random.random_bool(0.2) { 0.3 } else { 0.0 },
        }
    }
}

fn bind(
    id: i64,
    topics: &[&str],
    organization: Option<&str>,
    is_ordered: bool,
    active: bool,
) -> Arc<Subscription> {
    let retry = serde_json::json!({
        "initial": "300ms", "multiplier": 2, "max": "4s", "max_attempts": MAX_ATTEMPTS,
    });
    let row = SubscriptionRow {
        id: SubscriptionId(id),
        organization: organization.map(str::to_owned),
        ordering: if is_ordered { Ordering::Key } else { Ordering::None },
        retry: retry.into(),
        active,
        ..SubscriptionRow::new(&format!("s{id}"), topics, "none", serde_json::json!({}))
    };
    Arc::new(Subscription::bind(row, &Registry::default()).0)
}

/// The subscriptions of the model. The second is ordered by key.
const SUBSCRIPTIONS: [(&str, Option<&str>, bool); 5] = [
    ("**", None, false),
    ("a.*", None, true),
    ("*.y", Some("acme"), false),
    ("a.x", None, false),
    ("b.**", None, false),
];

impl World {
    /// Plans a history.
    pub(crate) fn plan_history(&mut self) {
        self.subscribe(1);
        for id in [2, 3] {
            if self.random.random_bool(0.6) {
                self.subscribe(id);
            }
        }
        if self.weather.inside.is_some() {
            self.subscribe(4);
        }
        if self.random.random_bool(0.3) {
            let later = self.random.random_range(500..8_000);
            self.after(later, |world| world.subscribe(5));
        }
        for relay in 0..self.weather.relays {
            let later = self.random.random_range(0..500);
            self.after(later, move |world| world.start(relay));
        }
        let poisoned = self.random.random_range(0..self.weather.transactions);
        for number in 0..self.weather.transactions {
            let at = self.random.random_range(100..STORMY);
            self.after(at, move |world| world.publish(number == poisoned));
        }
        for _ in 0..self.weather.faults {
            let at = self.random.random_range(500..STORMY);
            self.after(at, Self::fault);
        }
        self.after(HEALED, Self::heal);
    }

    fn subscribe(&mut self, id: i64) {
        let (topic, organization, is_ordered) = SUBSCRIPTIONS[usize::try_from(id - 1).unwrap_or(0)];
        self.database.subscribe(bind(id, &[topic], organization, is_ordered, true));
        let since = self.journal.commits.len();
        self.journal.wishes.push(Wish { id, topic, organization, since, is_ordered });
        self.tell_relays();
    }

    /// Relays that listen are told.
    fn tell_relays(&mut self) {
        for relay in 0..self.relays.len() {
            let who = self.who(relay);
            if self.relays[relay].is_alive && self.relays[relay].memory.listens && !self.is_cut(relay) {
                let wait = self.travel();
                self.after_at(who, wait, move |world| {
                    world.route(who);
                    world.claim(who);
                });
            }
        }
    }

    fn set_active(&mut self, id: i64, active: bool) {
        let (topic, organization, is_ordered) = SUBSCRIPTIONS[usize::try_from(id - 1).unwrap_or(0)];
        self.database.subscribe(bind(id, &[topic], organization, is_ordered, active));
        let now = self.now();
        match active {
            false => self.journal.pauses.push((id, now, None)),
            true => {
                for pause in self.journal.pauses.iter_mut().filter(|pause| pause.0 == id && pause.2.is_none())
                {
                    pause.2 = Some(now);
                }
            }
        }
        self.tell_relays();
    }

    /// A transaction of a publisher begins.
    fn publish(&mut self, is_poisoned: bool) {
        if self.is_down {
            return self.after(300, move |world| world.publish(is_poisoned));
        }
        let key = *[None, Some("k1"), Some("k2")].choose(&mut self.random).unwrap_or(&None);
        let count = self.random.random_range(1..=4);
        let mut draft = Draft {
            key,
            topic: ["a.x", "a.y", "b.x", "b.y"][self.random.random_range(0..4)],
            organization: [None, Some("acme"), Some("globex")][self.random.random_range(0..3)],
            is_synchronous: !self.random.random_bool(self.weather.asynchronous),
            commits: self.random.random_bool(0.85),
            holds: match self.random.random_bool(0.2) {
                true => self.random.random_range(500..6_000),
                false => self.random.random_range(0..20),
            },
            crashes: self.database.crashes,
            xid: None,
            events: Vec::new(),
            is_poisoned,
        };
        let mut drawn = Vec::new();
        if self.has(Defect::PositionBeforeKeyLock) {
            draft.xid = Some(self.database.begin());
            drawn.extend((0..count).map(|_| self.database.draw()));
        }
        let Some(key) = key else { return self.insert(draft, count, drawn) };
        // The lock of the key comes before the position.
        let begin: Act = Box::new(move |world| world.insert(draft, count, drawn));
        let is_drawn_before = self.has(Defect::PositionBeforeKeyLock);
        match self.keys.get_mut(key) {
            // Between its position and its turn anybody may come first.
            Some(waiting) if is_drawn_before => waiting.push_front(begin),
            Some(waiting) => waiting.push_back(begin),
            None => {
                self.keys.insert(key, VecDeque::new());
                begin(self);
            }
        }
    }

    fn insert(&mut self, mut draft: Draft, count: usize, drawn: Vec<i64>) {
        if self.database.crashes != draft.crashes || self.is_down {
            return self.unlock(draft.key);
        }
        let xid = *draft.xid.get_or_insert_with(|| self.database.begin());
        for n in 0..count {
            let position = drawn.get(n).copied().unwrap_or_else(|| self.database.draw());
            let mut id = Uuid::from_u128(self.random.random());
            if draft.is_poisoned && n == 0 {
                id = self.weather.poison.unwrap_or(id);
            }
            let event = Event {
                id,
                position: Position(position),
                created_at: date(self.database.now),
                topic: draft.topic.to_owned(),
                key: draft.key.map(str::to_owned),
                payload: String::new(),
                headers: String::new(),
                organization: draft.organization.map(str::to_owned),
                source: None,
                user_id: None,
                schema_version: None,
            };
            self.database.insert(xid, event);
            draft.events.push(id);
        }
        let holds = draft.holds;
        self.after(holds, move |world| world.end_transaction(draft));
    }

    fn end_transaction(&mut self, draft: Draft) {
        let is_gone = self.database.crashes != draft.crashes || self.is_down;
        let xid = draft.xid.unwrap_or_default();
        if !is_gone && draft.commits && self.database.commit(xid, draft.is_synchronous) {
            self.events += draft.events.len();
            for event in &draft.events {
                self.journal.commits.push(Commit {
                    event: *event,
                    topic: draft.topic,
                    organization: draft.organization,
                    key: draft.key,
                    is_synchronous: draft.is_synchronous,
                });
            }
            if !draft.is_synchronous {
                if self.random.random_bool(self.weather.crashes) && !self.is_healed {
                    let wait = self.random.random_range(0..120);
                    self.after(wait, Self::crash);
                }
                let (wait, crashes) = (self.random.random_range(0..1_500), self.database.crashes);
                self.after(wait, move |world| {
                    if world.database.crashes == crashes {
                        world.database.flush();
                    }
                });
            }
            self.tell_relays();
        } else if !is_gone {
            self.database.rollback(xid);
        }
        self.unlock(draft.key);
    }

    fn unlock(&mut self, key: Option<&'static str>) {
        let Some(key) = key else { return };
        match self.keys.get_mut(key).and_then(VecDeque::pop_front) {
            Some(next) => self.clock.after(0, next),
            None => drop(self.keys.remove(key)),
        }
    }

    fn fault(&mut self) {
        if self.is_healed {
            return;
        }
        let relay = self.random.random_range(0..self.relays.len());
        let permits = self.weather.permits;
        let who = self.who(relay);
        let lasts = match self.random.random_bool(0.5) {
            true => self.random.random_range(100..SHORT),
            false => self.random.random_range(5_000..20_000),
        };
        match self.random.random_range(0..16) {
            0..4 => {
                let at_risk = self.at_risk(relay);
                self.journal.fault("killed", at_risk);
                self.kill(relay);
                let wait = lasts.min(4_000);
                self.after(wait, move |world| world.start(relay));
            }
            4..6 if self.relays[relay].is_alive => {
                let at_risk = self.at_risk(relay);
                self.journal.fault("frozen", if lasts > SHORT { at_risk } else { 0 });
                self.journal.is_split = true;
                self.relays[relay].is_frozen = true;
                self.after(lasts, move |world| world.thaw(relay, who.life));
            }
            6..8 => {
                self.journal.fault("cut off", if lasts > SHORT { permits } else { 0 });
                self.journal.is_split = true;
                self.relays[relay].cut_until = self.now() + lasts;
                self.after_at(who, lasts + 50, move |world| world.reconnect(relay));
            }
            8..11 => {
                self.crash();
            }
            11 if !self.relays[relay].is_frozen => {
                self.journal.fault("stopped", 0);
                self.stop(relay);
            }
            12 => {
                self.journal.fault("doorbell lost", 0);
                self.relays[relay].memory.listens = false;
                self.after_at(who, 15_000, move |world| world.reconnect(relay));
            }
            13 => {
                let forward = self.random.random_bool(0.7);
                let jump = if forward {
                    self.random.random_range(1_000..40_000)
                } else {
                    -self.random.random_range(500..3_000)
                };
                // All leases end at once, and what is leased ahead begins until a renewal fails.
                self.journal.fault("clock of the server jumped", 5 * permits * self.relays.len());
                self.journal.is_split = true;
                self.journal.clock_jumped = true;
                self.server_ahead += jump;
            }
            _ => {
                let wish = self.journal.wishes.choose(&mut self.random).map_or(1, |wish| wish.id);
                if self.subscription(wish).is_some_and(|one| one.row.active) {
                    self.set_active(wish, false);
                    self.after(lasts.min(9_000), move |world| world.set_active(wish, true));
                }
            }
        }
    }

    fn crash(&mut self) {
        if self.is_down || self.is_healed {
            return;
        }
        self.journal.fault("server crashed", 0);
        self.database.crash();
        self.is_down = true;
        let wait = self.random.random_range(100..1_500);
        self.after(wait, Self::recover);
    }

    fn thaw(&mut self, relay: usize, life: u32) {
        let one = &mut self.relays[relay];
        if one.life != life || !one.is_frozen {
            return;
        }
        one.is_frozen = false;
        for act in std::mem::take(&mut one.deferred) {
            let who = self.who(relay);
            self.after_at(who, 0, act);
        }
    }

    fn recover(&mut self) {
        self.is_down = false;
        for relay in 0..self.relays.len() {
            let wait = self.travel();
            let who = self.who(relay);
            self.after_at(who, wait, move |world| world.reconnect(relay));
        }
    }

    /// The connection of the doorbell is there again: whatever was not heard is looked for.
    fn reconnect(&mut self, relay: usize) {
        let who = self.who(relay);
        self.relays[relay].memory.listens = true;
        if !self.has(Defect::NoPollAfterReconnect) {
            self.route(who);
            self.claim(who);
        }
    }

    fn heal(&mut self) {
        self.is_healed = true;
        if self.is_down {
            self.recover();
        }
        for relay in 0..self.relays.len() {
            let life = self.relays[relay].life;
            self.thaw(relay, life);
            if self.relays[relay].cut_until > self.now() {
                self.relays[relay].cut_until = 0;
                let who = self.who(relay);
                self.after_at(who, 0, move |world| world.reconnect(relay));
            }
        }
        let paused: Vec<i64> =
            self.journal.pauses.iter().filter(|pause| pause.2.is_none()).map(|pause| pause.0).collect();
        paused.into_iter().for_each(|id| self.set_active(id, true));
    }
}

/// A transaction of a publisher.
#[derive(Debug)]
struct Draft {
    key: Option<&'static str>,
    topic: &'static str,
    organization: Option<&'static str>,
    is_synchronous: bool,
    commits: bool,
    holds: Millis,
    crashes: u64,
    xid: Option<u64>,
    events: Vec<Uuid>,
    is_poisoned: bool,
}
