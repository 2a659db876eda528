//! A server, relays and destinations in virtual time, and how statements travel between them.

use std::sync::Arc;

use pgoutbox::subscription::Subscription;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use uuid::Uuid;

use super::{
    checker::Journal,
    clock::{Act, Clock},
    database::{Database, Millis},
    defect::Defect,
    history::Weather,
    relay::Relay,
};

/// How long leases are.
pub(crate) const LEASE: Millis = 10_000;

/// The first moment of every history, far from zero.
const BEGINNING: Millis = 1_800_000_000_000;

/// One life of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) relay: usize,
    pub(crate) life: u32,
}

/// A statement whose answer did not come: it may have been committed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unanswered;

/// Everything there is.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) random: StdRng,
    pub(crate) database: Database,
    pub(crate) relays: Vec<Relay>,
    pub(crate) journal: Journal,
    pub(crate) weather: Weather,
    /// The server accepts no connection.
    pub(crate) is_down: bool,
    /// How far the clock of the server is ahead.
    pub(crate) server_ahead: Millis,
    pub(crate) is_healed: bool,
    pub(crate) attempts: u64,
    /// Who has the lock of a key, and who waits for it.
    pub(crate) keys: std::collections::BTreeMap<&'static str, std::collections::VecDeque<Act>>,
    pub(crate) events: usize,
}

impl World {
    pub(crate) fn new(seed: u64, defect: Option<Defect>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let weather = Weather::draw(&mut random);
        let clock = Clock::at(BEGINNING);
        let relays = (0..weather.relays).map(|_| Relay::new(&mut random)).collect();
        Self {
            clock,
            random,
            database: Database::new(defect, 1),
            relays,
            journal: Journal::default(),
            weather,
            is_down: false,
            server_ahead: 0,
            is_healed: false,
            attempts: 0,
            keys: std::collections::BTreeMap::new(),
            events: 0,
        }
    }

    pub(crate) fn has(&self, defect: Defect) -> bool {
        self.database.has(defect)
    }

    pub(crate) fn now(&self) -> Millis {
        self.clock.now
    }

    pub(crate) fn token(&mut self) -> Uuid {
        Uuid::from_u128(self.random.random())
    }

    /// How long a message travels.
    pub(crate) fn travel(&mut self) -> Millis {
        if self.random.random_bool(0.05) {
            self.random.random_range(0..300)
        } else {
            self.random.random_range(0..8)
        }
    }

    pub(crate) fn after(&mut self, wait: Millis, act: impl FnOnce(&mut Self) + 'static) {
        self.clock.after(wait, Box::new(act));
    }

    /// Something that a relay does, if it lives; if it is frozen, when it wakes.
    pub(crate) fn after_at(&mut self, who: Who, wait: Millis, act: impl FnOnce(&mut Self) + 'static) {
        self.clock.after(wait, Box::new(move |world| world.at(who, Box::new(act))));
    }

    fn at(&mut self, who: Who, act: Act) {
        let relay = &mut self.relays[who.relay];
        if relay.life != who.life || !relay.is_alive {
            return;
        }
        match relay.is_frozen {
            true => relay.deferred.push(act),
            false => act(self),
        }
    }

    pub(crate) fn is_cut(&self, relay: usize) -> bool {
        self.is_down || self.relays[relay].cut_until > self.now()
    }

    /// The time that a statement sees. The server's clock is the only one that decides.
    pub(crate) fn set_clock(&mut self, relay: usize) {
        let by_relay = self.has(Defect::WallClockForLeases);
        let ahead = if by_relay { self.relays[relay].wall_ahead } else { self.server_ahead };
        self.database.now = self.clock.now + ahead;
    }

    /// Sends a statement, runs it at the server, and brings its answer: each may fail on the way.
    pub(crate) fn statement<T: 'static>(
        &mut self,
        who: Who,
        run: impl FnOnce(&mut Database) -> T + 'static,
        then: impl FnOnce(&mut Self, Result<T, Unanswered>) + 'static,
    ) {
        self.send(who, true, run, then);
    }

    /// A statement that is not pinned runs over whatever connection there is when it arrives.
    pub(crate) fn send<T: 'static>(
        &mut self,
        who: Who,
        is_pinned: bool,
        run: impl FnOnce(&mut Database) -> T + 'static,
        then: impl FnOnce(&mut Self, Result<T, Unanswered>) + 'static,
    ) {
        let crashes = self.database.crashes;
        let lost =
            self.weather.losses > 0.0 && !self.is_healed && self.random.random_bool(self.weather.losses);
        let lost_after = lost && self.random.random_bool(0.5);
        let there = self.travel();
        self.after(there, move |world| {
            let is_away = world.is_cut(who.relay);
            if is_away && !is_pinned {
                return world.after_at(who, 100, move |world| world.send(who, false, run, then));
            }
            if is_away || is_pinned && world.database.crashes != crashes || lost && !lost_after {
                let wait = if world.is_down { 20 } else { 200 };
                return world.after_at(who, wait, |world| then(world, Err(Unanswered)));
            }
            world.arrived(who, lost_after, run, then);
        });
    }

    fn arrived<T: 'static>(
        &mut self,
        who: Who,
        is_lost: bool,
        run: impl FnOnce(&mut Database) -> T,
        then: impl FnOnce(&mut Self, Result<T, Unanswered>) + 'static,
    ) {
        self.set_clock(who.relay);
        let answer = run(&mut self.database);
        let (back, crashes) = (self.travel(), self.database.crashes);
        self.after(back, move |world| {
            let is_lost = is_lost || world.is_cut(who.relay) || world.database.crashes != crashes;
            let answer = if is_lost { Err(Unanswered) } else { Ok(answer) };
            world.at(who, Box::new(move |world| then(world, answer)));
        });
    }

    /// A subscription, as every process binds it.
    pub(crate) fn subscription(&self, id: i64) -> Option<Arc<Subscription>> {
        self.database.data.subscriptions.get(&id).cloned()
    }

    /// Runs until nothing is owed any more or it is too late.
    pub(crate) fn run(&mut self, until: Millis) {
        let end = self.clock.now + until;
        let mut acts = 0_u32;
        while let Some(act) = self.clock.next() {
            act(self);
            acts += 1;
            if acts.is_multiple_of(64) && self.is_healed && self.is_over() || self.clock.now > end {
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.database.owes_nothing()
            && self.database.unrouted().is_empty()
            && self.relays.iter().all(|relay| relay.is_idle())
    }
}
