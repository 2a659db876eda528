//! A relay of the model: the stages of the product as steps in virtual time. What decides is the product's
//! own code: gate, plan, retry schedule, verdicts, and the parts in which a dead relay's page goes back.

mod claim;
mod deliver;
mod keep;
mod order;
mod route;
mod settle;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use pgoutbox::{
    event::{Event, Position},
    relay::decisions::{Gate, Ordered, Place},
    subscription::Subscription,
};
use rand::{Rng as _, rngs::StdRng};
use uuid::Uuid;

pub(crate) use deliver::ATTEMPT;

use super::{
    clock::Act,
    database::{Cursor, Millis},
    world::{LEASE, Who, World},
};

/// A lease, as far as its relay knows.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) token: Cell<Uuid>,
    /// When the statement was sent that gave or renewed it.
    pub(super) given: Cell<Millis>,
    /// It was given up, or a verdict under it was refused: nothing begins under it any more.
    pub(super) is_lost: Cell<bool>,
}

impl Lease {
    pub(super) fn new(token: Uuid, given: Millis) -> Self {
        Self { token: Cell::new(token), given: Cell::new(given), is_lost: Cell::new(false) }
    }
}

/// A page that a relay holds.
#[derive(Debug)]
pub(super) struct PageHeld {
    pub(super) id: i64,
    pub(super) lease: Lease,
    pub(super) deaths: i16,
    pub(super) alone: i16,
    /// Pairs that are not settled.
    pub(super) left: Cell<usize>,
}

/// A row that a relay holds.
#[derive(Debug)]
pub(super) struct RowHeld {
    pub(super) id: i64,
    pub(super) lease: Lease,
}

#[derive(Debug, Clone)]
pub(super) enum Held {
    Page(Rc<PageHeld>, i32),
    Row(Rc<RowHeld>),
}

impl Held {
    pub(super) fn lease(&self) -> &Lease {
        match self {
            Self::Page(page, _) => &page.lease,
            Self::Row(row) => &row.lease,
        }
    }
}

/// What a gate let a delivery do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passage {
    Free,
    Passed,
    Aside,
    Back,
    Superseded,
}

/// A delivery that a relay holds.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) subscription: i64,
    pub(super) position: i64,
    /// None: it is not in the log.
    pub(super) event: Option<Rc<Event>>,
    pub(super) held: Held,
    pub(super) attempt: u32,
    pub(super) unfinished: u32,
    pub(super) repeated: bool,
    pub(super) owed_since: chrono::DateTime<chrono::Utc>,
    pub(super) lane: Option<Arc<str>>,
    pub(super) place: Place,
    pub(super) passage: Passage,
    /// It was sent before it was held, by mistake.
    pub(super) is_sent: bool,
}

impl Ordered for Job {
    fn position(&self) -> Position {
        Position(self.position)
    }

    fn place(&self) -> Place {
        self.place
    }
}

impl Job {
    /// How many relays may have died because of it.
    pub(super) fn blame(&self) -> u32 {
        match &self.held {
            Held::Page(page, _) if page.deaths >= 2 => u32::from(page.deaths >= 3) + 1,
            Held::Page(..) => 0,
            Held::Row(_) => self.unfinished,
        }
    }

    pub(super) fn is_deadly(&self) -> bool {
        match &self.held {
            Held::Page(page, _) => page.deaths >= 3 && page.alone >= 2,
            Held::Row(_) => self.unfinished >= 3,
        }
    }
}

/// How an attempt ended, or why there was none.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) job: Job,
    pub(super) outcome: pgoutbox::Outcome,
    pub(super) ambiguous: bool,
    pub(super) counts: bool,
    pub(super) has_permit: bool,
}

/// One process after the other in one place.
pub(crate) struct Relay {
    pub(crate) life: u32,
    pub(crate) is_alive: bool,
    pub(crate) is_frozen: bool,
    pub(crate) deferred: Vec<Act>,
    /// It cannot reach the server until then.
    pub(crate) cut_until: Millis,
    /// How far the clock of its machine is ahead.
    pub(crate) wall_ahead: Millis,
    pub(crate) memory: Memory,
}

/// What a process knows.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(super) index: BTreeMap<i64, Arc<Subscription>>,
    pub(super) generation: i64,
    pub(super) cursor: Option<Cursor>,
    pub(super) pages: BTreeMap<i64, Rc<PageHeld>>,
    pub(super) rows: BTreeMap<i64, Rc<RowHeld>>,
    /// Pages with nothing left that no batch has deleted.
    pub(super) finished: Vec<Rc<PageHeld>>,
    pub(super) ahead: VecDeque<Job>,
    pub(super) gates: BTreeMap<i64, Gate<Job>>,
    pub(super) order_token: Uuid,
    /// Leases of ordered subscriptions, and when they were given.
    pub(super) order: BTreeMap<i64, Millis>,
    pub(super) in_flight: BTreeMap<u64, Job>,
    pub(super) unsettled: Vec<Ended>,
    /// Permits of what is being settled.
    pub(super) settling_permits: usize,
    pub(super) settling: usize,
    pub(super) is_routing: bool,
    pub(super) routes_again: bool,
    pub(super) is_claiming: bool,
    pub(super) claims_again: bool,
    pub(super) suspects_alone: bool,
    /// What was sent before it was held, by mistake.
    pub(super) sent: BTreeSet<(i64, i64)>,
    /// Notifications reach it.
    pub(crate) listens: bool,
    pub(super) is_stopping: bool,
}

impl Relay {
    pub(crate) fn new(random: &mut StdRng) -> Self {
        let wall_ahead = random.random_range(-30_000..30_000);
        Self {
            life: 0,
            is_alive: false,
            is_frozen: false,
            deferred: Vec::new(),
            cut_until: 0,
            wall_ahead,
            memory: Memory::default(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        let memory = &self.memory;
        !self.is_alive || memory.in_flight.is_empty() && memory.unsettled.is_empty() && memory.settling == 0
    }
}

impl World {
    pub(super) fn memory(&mut self, who: Who) -> &mut Memory {
        &mut self.relays[who.relay].memory
    }

    pub(crate) fn who(&self, relay: usize) -> Who {
        Who { relay, life: self.relays[relay].life }
    }

    /// Starts a relay where none runs.
    pub(crate) fn start(&mut self, relay: usize) {
        if self.relays[relay].is_alive {
            return;
        }
        let order_token = self.token();
        let one = &mut self.relays[relay];
        one.is_alive = true;
        one.is_frozen = false;
        one.life += 1;
        one.deferred.clear();
        one.memory = Memory { order_token, listens: true, ..Memory::default() };
        let who = self.who(relay);
        self.load(who);
    }

    /// Reads the subscriptions before anything else.
    fn load(&mut self, who: Who) {
        self.statement(who, |database| (database.data.generation, database.data.subscriptions.clone()), {
            move |world, answer| match answer {
                Ok((generation, index)) => {
                    let memory = world.memory(who);
                    (memory.index, memory.generation) = (index, generation);
                    world.route(who);
                    world.claim(who);
                    world.tick(who);
                    world.look_at_leases(who);
                }
                Err(_) => world.after_at(who, 500, move |world| world.load(who)),
            }
        });
    }

    /// The poll, and what a relay does now and then.
    fn tick(&mut self, who: Who) {
        if self.memory(who).is_stopping {
            return;
        }
        if self.weather.polls {
            self.route(who);
        }
        self.claim(who);
        self.begin(who);
        let wait = if self.is_healed { 400 } else { 1_000 };
        self.after_at(who, wait, move |world| world.tick(who));
    }

    /// A relay ends without a word.
    pub(crate) fn kill(&mut self, relay: usize) {
        self.relays[relay].is_alive = false;
        self.relays[relay].is_frozen = false;
        self.relays[relay].deferred.clear();
    }

    /// Whether a lease may still be used to begin something.
    pub(super) fn is_good(&self, lease: &Lease) -> bool {
        if self.has(super::defect::Defect::SendsWithoutLease) {
            return true;
        }
        !lease.is_lost.get() && self.now() - lease.given.get() < LEASE * 2 / 3
    }
}
