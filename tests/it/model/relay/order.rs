//! Ordered subscriptions of a relay: their leases, and the product's gates in front of what begins.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use pgoutbox::{
    Outcome, Reason,
    relay::decisions::{Epoch, Fate, Gate, Released},
    store::{BacklogClaim, Claim, Keyed},
};

use super::{
    super::{
        defect::Defect,
        world::{LEASE, Unanswered, Who, World},
    },
    Ended, Job, Passage,
    claim::{Step, with_event, with_events},
    route::target,
};

/// Rows of one key that a claim leases.
const LONGEST_RUN: usize = 8;

impl World {
    /// Leases and opens an ordered subscription, or claims for it.
    pub(super) fn claim_in_order(&mut self, who: Who, id: i64, room: usize, steps: VecDeque<Step>) {
        let memory = self.memory(who);
        if memory.gates.get(&id).is_some_and(|gate| !gate.is_open() && gate.is_empty()) {
            memory.gates.remove(&id);
        }
        match memory.gates.get(&id) {
            Some(gate) if gate.is_open() && room > 0 => self.claim_keyed(who, id, room, steps),
            Some(_) => self.next_step(who, steps),
            None if memory.order.contains_key(&id) => self.open(who, id, steps),
            None => {
                let (token, given) = (memory.order_token, self.now());
                self.statement(
                    who,
                    move |database| database.acquire_order(&[id], token, LEASE),
                    move |world, answer| {
                        if answer.is_ok_and(|acquired| acquired.contains(&id)) {
                            world.memory(who).order.insert(id, given);
                            return world.open(who, id, steps);
                        }
                        world.next_step(who, steps);
                    },
                );
            }
        }
    }

    fn open(&mut self, who: Who, id: i64, steps: VecDeque<Step>) {
        let token = self.memory(who).order_token;
        self.statement(
            who,
            move |database| database.open_order(id, token, false),
            move |world, answer| {
                if let Ok(opened) = answer {
                    let is_leased = world.memory(who).order.contains_key(&id);
                    if opened.is_free && is_leased && !world.memory(who).is_stopping {
                        let gate = Gate::new(opened.keys.into_iter().map(Arc::from), false);
                        world.memory(who).gates.insert(id, gate);
                        world.memory(who).claims_again = true;
                    }
                }
                world.next_step(who, steps);
            },
        );
    }

    fn claim_keyed(&mut self, who: Who, id: i64, room: usize, steps: VecDeque<Step>) {
        let (token, given) = (self.token(), self.now());
        let memory = self.memory(who);
        let order = memory.order_token;
        let Some(gate) = memory.gates.get_mut(&id) else { return self.next_step(who, steps) };
        let epoch = gate.epoch();
        let wanted: Vec<Arc<str>> = gate.take_wanted(8);
        let asked: Vec<_> = wanted.iter().map(|key| (target(id), key.as_ref().to_owned())).collect();
        let room = u32::try_from(room.min(8)).unwrap_or(1);
        let claims = [Claim { subscription: target(id), room, since: None }];
        self.statement(
            who,
            move |database| {
                let mut keyed = database.claim_keyed(&claims, &asked, LONGEST_RUN, (order, token), LEASE);
                let rows = with_event(database, std::mem::take(&mut keyed.claimed));
                (keyed, rows)
            },
            move |world, answer| match answer {
                Ok((keyed, rows)) => {
                    world.has_claimed_keyed(who, id, &wanted, &keyed, &rows, epoch);
                    let jobs = world.jobs_of_rows(who, rows, (token, given));
                    world.arrive(who, id, jobs, epoch);
                    world.claim_ordered(who, id, steps);
                }
                Err(Unanswered) => {
                    world.claim_is_unknown(who, id, wanted);
                    world.next_step(who, steps);
                }
            },
        );
    }

    fn has_claimed_keyed(
        &mut self,
        who: Who,
        id: i64,
        wanted: &[Arc<str>],
        keyed: &Keyed,
        rows: &super::claim::Rows,
        epoch: Epoch,
    ) {
        let Some(gate) = self.memory(who).gates.get_mut(&id) else { return };
        let answered: BTreeSet<&str> = rows
            .iter()
            .filter_map(|(row, _)| row.key.as_deref())
            .chain(keyed.without.iter().map(|(_, key, _)| key.as_str()))
            .collect();
        for key in wanted.iter().filter(|key| !answered.contains(key.as_ref())) {
            gate.want(key.clone());
        }
        for (_, key, has_rows) in &keyed.without {
            gate.found_none(&Arc::from(key.as_str()), *has_rows, epoch);
        }
    }

    fn claim_ordered(&mut self, who: Who, id: i64, steps: VecDeque<Step>) {
        let (token, given) = (self.token(), self.now());
        let room = (self.weather.permits * 4).saturating_sub(self.memory(who).ahead.len()).min(8);
        let memory = self.memory(who);
        let order = memory.order_token;
        let has_suspect = memory.suspects_alone
            && (memory.ahead.iter().chain(memory.in_flight.values())).any(|job| job.blame() > 0);
        let Some(gate) = memory.gates.get(&id).filter(|gate| gate.may_claim() && room > 0 && !has_suspect)
        else {
            return self.next_step(who, steps);
        };
        let waiting = gate.waiting();
        let epoch = gate.epoch();
        let wanted = room.saturating_sub(waiting).max(1);
        let claims = [BacklogClaim { subscription: target(id), wanted, since: 0, own_page: false }];
        self.statement(
            who,
            move |database| {
                let pages = database.claim_ordered(&claims, order, token, LEASE).pages;
                with_events(database, pages)
            },
            move |world, answer| {
                match answer {
                    Ok(pages) => {
                        let suspects = pages.iter().any(|(page, _)| page.deaths > 0);
                        let mut jobs = world.jobs_of_pages(who, pages, (token, given));
                        let back = match suspects {
                            true => world.keep_one_suspect(who, &mut jobs),
                            false => Vec::new(),
                        };
                        world.memory(who).claims_again |= !jobs.is_empty();
                        world.arrive(who, id, jobs, epoch);
                        world.return_unread(who, id, back);
                    }
                    Err(Unanswered) => world.claim_is_unknown(who, id, Vec::new()),
                }
                world.next_step(who, steps);
            },
        );
    }

    /// What was perhaps leased comes before what is claimed next: nothing goes on before its lease has ended.
    fn claim_is_unknown(&mut self, who: Who, id: i64, wanted: Vec<Arc<str>>) {
        if self.has(Defect::ClaimInOrderForgotten) {
            if let Some(gate) = self.memory(who).gates.get_mut(&id) {
                wanted.into_iter().for_each(|key| gate.want(key));
            }
            return;
        }
        self.close_gate(who, id);
    }

    /// These were claimed and are not held: they go back.
    fn return_unread(&mut self, who: Who, id: i64, back: Vec<Job>) {
        if let Some(gate) = self.memory(who).gates.get_mut(&id) {
            gate.returns(back.len());
        }
        let marked = back.into_iter().map(|job| Job { passage: Passage::Back, ..job }).collect();
        self.give_back(who, marked);
    }

    fn arrive(&mut self, who: Who, id: i64, jobs: Vec<Job>, epoch: Epoch) {
        let mut keyed = Vec::with_capacity(jobs.len());
        for mut job in jobs {
            let key = job.event.as_ref().and_then(|event| event.key.as_deref());
            job.lane = job.lane.take().or_else(|| key.map(Arc::from));
            keyed.push((job.lane.clone(), job));
        }
        keyed.sort_by_key(|(_, job)| job.position);
        let released = match self.memory(who).gates.get_mut(&id) {
            Some(gate) => gate.arrive(keyed, epoch),
            None => Released { back: keyed.into_iter().map(|(_, job)| job).collect(), ..Released::default() },
        };
        self.release(who, released, false);
        self.begin(who);
    }

    fn release(&mut self, who: Who, released: Released<Job>, have_waited: bool) {
        let Released { pass, aside, back, superseded } = released;
        for mut job in pass {
            if job.lane.is_some() {
                job.passage = Passage::Passed;
            }
            match have_waited {
                true => self.memory(who).ahead.push_front(job),
                false => self.memory(who).ahead.push_back(job),
            }
        }
        let marked = [(aside, Passage::Aside), (back, Passage::Back), (superseded, Passage::Superseded)];
        for (jobs, passage) in marked {
            for job in jobs {
                let job = Job { passage, ..job };
                let outcome = Outcome::Retry { reason: Reason::LeaseLost, after: None };
                let ended = Ended { job, outcome, ambiguous: false, counts: false, has_permit: false };
                self.settle_later(who, ended);
            }
        }
    }

    /// The verdict on a delivery that had passed is committed.
    pub(super) fn tell_gate(&mut self, who: Who, job: &Job, lane: &Arc<str>, fate: Fate) {
        let passes = self.has(Defect::KeyPassesItsRetry) && fate == Fate::Retried;
        let fate = if passes { Fate::Done } else { fate };
        let Some(gate) = self.memory(who).gates.get_mut(&job.subscription) else { return };
        let mut released = gate.ended(lane, job.place, fate);
        if fate == Fate::Lost {
            gate.close(&mut released);
        }
        self.release(who, released, true);
        self.wants_keys(who, job.subscription);
    }

    pub(super) fn tell_written(&mut self, who: Who, id: i64, lane: &Arc<str>) {
        let Some(gate) = self.memory(who).gates.get_mut(&id) else { return };
        let released = gate.written(lane);
        self.release(who, released, true);
        self.wants_keys(who, id);
    }

    pub(super) fn tell_returned(&mut self, who: Who, id: i64) {
        if let Some(gate) = self.memory(who).gates.get_mut(&id) {
            gate.returned();
        }
    }

    fn wants_keys(&mut self, who: Who, id: i64) {
        if self.memory(who).gates.get(&id).is_some_and(Gate::has_wanted) {
            self.claim(who);
        }
    }

    fn close_gate(&mut self, who: Who, id: i64) {
        let mut released = Released::default();
        if let Some(gate) = self.memory(who).gates.get_mut(&id) {
            gate.close(&mut released);
        }
        self.release(who, released, false);
    }

    pub(super) fn close_gates(&mut self, who: Who) {
        let ids: Vec<i64> = self.memory(who).gates.keys().copied().collect();
        ids.into_iter().for_each(|id| self.close_gate(who, id));
    }

    /// Extends leases of ordered subscriptions; what is not renewed in time is closed.
    pub(super) fn look_at_order(&mut self, who: Who) {
        let now = self.now();
        let memory = self.memory(who);
        let (token, old): (_, Vec<i64>) = (
            memory.order_token,
            memory
                .order
                .iter()
                .filter(|(_, given)| now - **given >= LEASE * 3 / 10)
                .map(|(id, _)| *id)
                .collect(),
        );
        let overdue: Vec<i64> = memory
            .order
            .iter()
            .filter(|(_, given)| now - **given >= LEASE * 2 / 3)
            .map(|(id, _)| *id)
            .collect();
        for id in overdue {
            self.memory(who).order.remove(&id);
            self.close_gate(who, id);
        }
        let paused: Vec<i64> = {
            let memory = self.memory(who);
            let is_paused = |id: &i64| memory.index.get(id).is_none_or(|one| !one.row.active);
            memory
                .gates
                .iter()
                .filter(|(id, gate)| gate.is_open() && is_paused(id))
                .map(|(id, _)| *id)
                .collect()
        };
        paused.into_iter().for_each(|id| self.close_gate(who, id));
        if old.is_empty() {
            return;
        }
        let asked = old.clone();
        self.statement(
            who,
            move |database| database.renew_order(&asked, token, LEASE),
            move |world, answer| {
                let Ok(ours) = answer else { return };
                for id in old {
                    if ours.contains(&id) {
                        if let Some(given) = world.memory(who).order.get_mut(&id) {
                            *given = now;
                        }
                    } else if world.memory(who).order.remove(&id).is_some() {
                        world.close_gate(who, id);
                    }
                }
            },
        );
    }

    /// Should an operator have removed the first row of a key: the next one is made due.
    pub(super) fn mend_order(&mut self, who: Who) {
        let memory = self.memory(who);
        let (token, ids): (_, Vec<i64>) = (
            memory.order_token,
            memory.gates.iter().filter(|(_, gate)| gate.is_open()).map(|(id, _)| *id).collect(),
        );
        for id in ids {
            self.statement(who, move |database| database.open_order(id, token, true), |_, _| {});
        }
    }

    pub(super) fn release_order_of(&mut self, who: Who) {
        let memory = self.memory(who);
        let (token, ids): (_, Vec<i64>) = (memory.order_token, memory.order.keys().copied().collect());
        memory.order.clear();
        if !ids.is_empty() {
            self.statement(who, move |database| database.release_order(&ids, token), |_, _| {});
        }
    }
}
