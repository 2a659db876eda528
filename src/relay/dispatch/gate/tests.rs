//! A model of a subscription's deliveries in the database, and a relay with a gate that is killed now and
//! then. Every history has a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{Epoch, Fate, Gate, Ordered, Place, Released};
use crate::event::Position;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    position: i64,
    key: Arc<str>,
    place: Place,
}

impl Ordered for Job {
    fn position(&self) -> Position {
        Position(self.position)
    }

    fn place(&self) -> Place {
        self.place
    }
}

/// When a row is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    Now,
    Later,
    Never,
    Leased,
}

/// What a settler commits.
#[derive(Debug)]
enum Write {
    Ended(Job, Fate),
    Aside(Job),
    Back(Job),
    Superseded(Job),
}

/// A claim whose answer has not arrived.
#[derive(Debug)]
struct Claim {
    epoch: Epoch,
    jobs: Vec<Job>,
    without: Vec<(Arc<str>, bool)>,
}

#[derive(Debug)]
struct World {
    rng: StdRng,
    coalesces: bool,
    // in the database
    backlog: BTreeMap<i64, Arc<str>>,
    /// What a relay held when it died. While some of it is in the backlog, no rows are claimed.
    suspects: BTreeSet<i64>,
    rows: BTreeMap<i64, (Arc<str>, Due)>,
    published: BTreeMap<Arc<str>, BTreeSet<i64>>,
    gone: BTreeSet<i64>,
    // in the relay
    gate: Gate<Job>,
    may_begin: Vec<Job>,
    in_flight: Vec<Job>,
    writes: Vec<Write>,
    /// Committed, and the gate is not told yet.
    committed: Vec<Write>,
    claim: Option<Claim>,
    delivered: BTreeSet<i64>,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let coalesces = rng.random_bool(0.25);
        Self {
            rng,
            coalesces,
            backlog: BTreeMap::new(),
            suspects: BTreeSet::new(),
            rows: BTreeMap::new(),
            published: BTreeMap::new(),
            gone: BTreeSet::new(),
            gate: Gate::new([], coalesces),
            may_begin: Vec::new(),
            in_flight: Vec::new(),
            writes: Vec::new(),
            committed: Vec::new(),
            claim: None,
            delivered: BTreeSet::new(),
        }
    }

    fn publish(&mut self, position: i64) {
        let key: Arc<str> = Arc::from(["a", "b", "c"][self.rng.random_range(0..3)]);
        self.published.entry(key.clone()).or_default().insert(position);
        self.backlog.insert(position, key);
    }

    fn release(&mut self, released: Released<Job>) {
        let Released { pass, aside, back, superseded } = released;
        self.may_begin.extend(pass);
        self.writes.extend(aside.into_iter().map(Write::Aside));
        self.writes.extend(back.into_iter().map(Write::Back));
        self.writes.extend(superseded.into_iter().map(Write::Superseded));
    }

    /// As sql/relay/claim_ordered.sql does.
    fn claim_backlog(&mut self) {
        if self.claim.is_some() || !self.gate.may_claim() {
            return;
        }
        let epoch = self.gate.epoch();
        let wanted = self.rng.random_range(1..6);
        let positions: Vec<i64> = self.backlog.keys().take(wanted).copied().collect();
        let take = |position| {
            let key = self.backlog.remove(&position)?;
            Some(Job { position, key, place: Place::Backlog })
        };
        let jobs = positions.into_iter().filter_map(take).collect();
        self.claim = Some(Claim { epoch, jobs, without: Vec::new() });
    }

    /// As sql/relay/claim_keyed.sql does.
    fn claim_rows(&mut self) {
        let has_suspects = self.suspects.iter().any(|position| self.backlog.contains_key(position));
        if self.claim.is_some() || !self.gate.is_open() || has_suspects {
            return;
        }
        let epoch = self.gate.epoch();
        let asked = self.gate.take_wanted(8);
        let due = self
            .rows
            .iter()
            .filter(|(_, (_, due))| *due == Due::Now)
            .map(|(at, (key, _))| (*at, key.clone()));
        let due: Vec<(i64, Arc<str>)> = due.collect();
        let keys: BTreeSet<Arc<str>> =
            due.iter().map(|(_, key)| key.clone()).chain(asked.iter().cloned()).collect();
        let mut jobs = Vec::new();
        let mut without = Vec::new();
        for key in keys {
            let of_key: Vec<(i64, Due)> = self
                .rows
                .iter()
                .filter(|(_, (of, _))| *of == key)
                .map(|(at, (_, due))| (*at, *due))
                .collect();
            let run = of_key.iter().take(4).take_while(|(_, due)| matches!(due, Due::Now | Due::Never));
            let run: Vec<i64> = run.map(|(at, _)| *at).collect();
            if run.is_empty() && asked.contains(&key) {
                without.push((key.clone(), !of_key.is_empty()));
            }
            for (at, due) in of_key {
                if run.contains(&at) {
                    self.rows.insert(at, (key.clone(), Due::Leased));
                    jobs.push(Job { position: at, key: key.clone(), place: Place::InOrder });
                } else if due == Due::Now && run.is_empty() {
                    self.rows.insert(at, (key.clone(), Due::Never));
                }
            }
        }
        jobs.sort_by_key(|job| job.position);
        self.claim = Some(Claim { epoch, jobs, without });
    }

    fn answer(&mut self) {
        let Some(Claim { epoch, jobs, without }) = self.claim.take() else { return };
        for (key, has_rows) in without {
            self.gate.found_none(&key, has_rows, epoch);
        }
        let jobs = jobs.into_iter().map(|job| (Some(job.key.clone()), job)).collect();
        let released = self.gate.arrive(jobs, epoch);
        self.release(released);
    }

    fn begin(&mut self) {
        if self.may_begin.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.may_begin.len());
        let job = self.may_begin.swap_remove(at);
        assert!(self.in_flight.iter().all(|other| other.key != job.key), "two in flight: {job:?}");
        let of_key = &self.published[&job.key];
        let owed: Vec<_> = of_key.range(..job.position).filter(|at| !self.gone.contains(at)).collect();
        assert!(owed.is_empty(), "{job:?} before {owed:?}");
        let after: Vec<_> =
            of_key.range(job.position + 1..).filter(|at| self.delivered.contains(at)).collect();
        assert!(after.is_empty(), "{job:?} after {after:?}");
        self.in_flight.push(job);
    }

    fn end(&mut self, failures: f64) {
        if self.in_flight.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.in_flight.len());
        let job = self.in_flight.swap_remove(at);
        let fate = match self.rng.random_bool(failures) {
            false => Fate::Done,
            true => *[Fate::Retried, Fate::Returned].choose(&mut self.rng).unwrap(),
        };
        self.writes.push(Write::Ended(job, fate));
    }

    /// One of the settlers commits something.
    fn commit(&mut self) {
        if self.writes.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.writes.len());
        let write = self.writes.swap_remove(at);
        match &write {
            Write::Ended(job, Fate::Done) => {
                self.rows.remove(&job.position);
                self.gone.insert(job.position);
                self.delivered.insert(job.position);
            }
            Write::Ended(job, Fate::Retried) => {
                let due = if self.rng.random_bool(0.5) { Due::Now } else { Due::Later };
                self.rows.insert(job.position, (job.key.clone(), due));
            }
            Write::Ended(job, _) | Write::Back(job) => self.put_back(&job.clone()),
            Write::Aside(job) => {
                self.rows.insert(job.position, (job.key.clone(), Due::Never));
            }
            Write::Superseded(job) => {
                self.rows.remove(&job.position);
                self.gone.insert(job.position);
            }
        }
        self.committed.push(write);
    }

    /// It tells the gate.
    fn tell(&mut self) {
        if self.committed.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.committed.len());
        let released = match self.committed.swap_remove(at) {
            Write::Ended(job, fate) => self.gate.ended(&job.key, job.place, fate),
            Write::Aside(job) => self.gate.written(&job.key),
            Write::Back(_) => {
                self.gate.returned();
                Released::default()
            }
            Write::Superseded(job) => self.gate.superseded(&job.key),
        };
        self.release(released);
    }

    fn put_back(&mut self, job: &Job) {
        match job.place {
            Place::Backlog => drop(self.backlog.insert(job.position, job.key.clone())),
            _ => drop(self.rows.insert(job.position, (job.key.clone(), Due::Now))),
        }
    }

    /// The relay dies, and another takes over.
    fn kill(&mut self) {
        let written = std::mem::take(&mut self.writes).into_iter().map(|write| match write {
            Write::Ended(job, _) | Write::Aside(job) | Write::Back(job) | Write::Superseded(job) => job,
        });
        let mut lost: Vec<Job> = written.collect();
        lost.append(&mut self.may_begin);
        lost.append(&mut self.in_flight);
        lost.extend(self.claim.take().into_iter().flat_map(|claim| claim.jobs));
        let mut released = Released::default();
        self.gate.close(&mut released);
        lost.extend(released.back);
        for job in lost.iter().filter(|job| job.place == Place::Backlog) {
            self.suspects.insert(job.position);
            self.put_back(job);
        }
        let mut keys = BTreeSet::new();
        let rows: Vec<(i64, Arc<str>, Due)> =
            self.rows.iter().map(|(at, (key, due))| (*at, key.clone(), *due)).collect();
        for (at, key, due) in rows {
            let is_first = keys.insert(key.clone());
            let due = match due {
                Due::Leased => Due::Now,
                Due::Never if is_first => Due::Now,
                due => due,
            };
            self.rows.insert(at, (key, due));
        }
        self.committed.clear();
        self.gate = Gate::new(keys, self.coalesces);
    }

    /// As sql/relay/open_order.sql does every ten seconds.
    fn mend(&mut self) {
        let mut keys = BTreeSet::new();
        for (key, due) in self.rows.values_mut() {
            if keys.insert(key.clone()) && *due == Due::Never {
                *due = Due::Now;
            }
        }
    }

    fn pass_time(&mut self) {
        for (_, due) in self.rows.values_mut() {
            if *due == Due::Later {
                *due = Due::Now;
            }
        }
    }

    fn step(&mut self, next: &mut i64, kills: bool) {
        match self.rng.random_range(0..100) {
            0..12 => {
                *next += 1;
                self.publish(*next);
            }
            12..28 => self.claim_backlog(),
            28..40 => self.claim_rows(),
            40..55 => self.answer(),
            55..70 => self.begin(),
            70..82 => self.end(0.3),
            82..89 => self.commit(),
            89..96 => self.tell(),
            96..98 => self.pass_time(),
            98 if self.rng.random_bool(0.3) => self.mend(),
            _ if kills => self.kill(),
            _ => {}
        }
    }

    /// Goes on without failures until nothing is owed.
    fn drain(&mut self) {
        for step in 0..20_000 {
            if step % 500 == 499 {
                self.mend();
            }
            if self.gone.len() == self.published.values().map(BTreeSet::len).sum::<usize>() {
                return;
            }
            match self.rng.random_range(0..8) {
                0 => self.claim_backlog(),
                1 => self.claim_rows(),
                2 => self.answer(),
                3 => self.begin(),
                4 => self.end(0.0),
                5 => self.commit(),
                6 => self.tell(),
                _ => self.pass_time(),
            }
        }
        panic!("it stands still: {self:#?}");
    }
}

#[test]
fn whatever_fails_goes_back_and_dies_the_events_of_a_key_begin_one_by_one_in_order() {
    let mut delivered = 0;
    for seed in 0..3_000 {
        let mut world = World::new(seed);
        let mut next = 0;
        let kills = seed % 3 != 0;
        let history = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..400 {
                world.step(&mut next, kills);
            }
            world.drain();
        }));
        assert!(history.is_ok(), "seed {seed}");
        delivered += world.delivered.len();
    }
    assert!(delivered > 50_000, "{delivered}");
}
