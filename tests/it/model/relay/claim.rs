//! Claims of a relay, one statement after the other: pages of dead relays, suspects, due rows, the backlog,
//! and what ordered subscriptions are owed.

use std::{cell::Cell, collections::VecDeque, rc::Rc};

use pgoutbox::{
    delivery::SubscriptionId,
    event::Event,
    relay::decisions::{Gate, Place},
    store::{BacklogClaim, Claim, Claimed, LeasedPage},
};
use uuid::Uuid;

use super::{
    super::{
        database::{Database, Found, Millis, is_keyed},
        defect::Defect,
        world::{LEASE, Unanswered, Who, World},
    },
    Held, Job, Lease, PageHeld, Passage, RowHeld,
};

/// One statement of a claim.
#[derive(Debug)]
pub(super) enum Step {
    TakeOver,
    Suspects(Vec<i64>),
    Rows(Vec<i64>),
    Backlog(Vec<i64>),
    InOrder(i64),
}

/// Positions of the backlog that one claim asks for.
const MOST: usize = 8;

/// What a claim has leased, with its events.
pub(super) type Pages = Vec<(LeasedPage, Vec<Option<Rc<Event>>>)>;
pub(super) type Rows = Vec<(Claimed, Option<Rc<Event>>)>;

pub(super) fn with_events(database: &Database, pages: Vec<LeasedPage>) -> Pages {
    let read = |page: &LeasedPage| {
        let positions = page.entries.iter().flat_map(|entry| entry.positions.iter().collect::<Vec<_>>());
        positions.map(|at| database.event(at).cloned().map(Rc::new)).collect()
    };
    pages.into_iter().map(|page| (read(&page), page)).map(|(events, page)| (page, events)).collect()
}

pub(super) fn with_event(database: &Database, rows: Vec<Claimed>) -> Rows {
    rows.into_iter()
        .map(|row| {
            let event = database.event(row.position.0).cloned().map(Rc::new);
            (row, event)
        })
        .collect()
}

impl World {
    /// Looks for what waits, and claims what there is room for.
    pub(crate) fn claim(&mut self, who: Who) {
        let memory = self.memory(who);
        if memory.is_stopping {
            return;
        }
        if memory.is_claiming {
            memory.claims_again = true;
            return;
        }
        memory.is_claiming = true;
        memory.claims_again = false;
        self.statement(who, |database| (database.find(), database.data.generation, database.now), {
            move |world, answer| match answer {
                Ok((found, generation, now)) => world.has_found(who, found, generation, now),
                Err(Unanswered) => world.after_at(who, 200, move |world| world.claimed(who)),
            }
        });
    }

    fn has_found(&mut self, who: Who, found: Found, generation: i64, now: Millis) {
        if generation > self.memory(who).generation && !self.has(Defect::StaleSubscriptions) {
            self.statement(
                who,
                |database| (database.data.generation, database.data.subscriptions.clone()),
                move |world, answer| {
                    if let Ok((generation, index)) = answer {
                        world.follow(who, generation, index);
                    }
                    world.memory(who).claims_again = true;
                    world.claimed(who);
                },
            );
            return;
        }
        let sends_paused = self.has(Defect::PausedIsSent);
        let asks = !self.has(Defect::NobodyAsksAgain);
        let memory = self.memory(who);
        let is_open = |id: i64, ordered: bool| {
            memory
                .index
                .get(&id)
                .is_some_and(|one| (one.row.active || sends_paused) && is_keyed(one) == ordered)
        };
        let waits = |suspects: bool| -> Vec<i64> {
            let of = found.backlog.iter().filter(|(id, kind)| *kind == suspects && is_open(*id, false));
            of.map(|(id, _)| *id).collect()
        };
        let rows = found.rows.iter().filter(|(id, due)| **due <= now && is_open(**id, false));
        let rows: Vec<i64> = rows.map(|(id, _)| *id).collect();
        let mut steps = VecDeque::new();
        if found.dead_pages {
            steps.push_back(Step::TakeOver);
        }
        for (list, step) in [
            (waits(true), Step::Suspects as fn(Vec<i64>) -> Step),
            (rows, Step::Rows),
            (waits(false), Step::Backlog),
        ] {
            if !list.is_empty() {
                steps.push_back(step(list));
            }
        }
        // What this relay has no open gate for is asked for again, whatever closed it, as `order::keep` does.
        let is_asked_for = |id: &i64| {
            !memory.gates.get(id).is_some_and(Gate::is_open)
                && (memory.order.contains_key(id) || found.in_order.contains(id))
        };
        for (id, _) in memory.index.iter().filter(|(id, _)| is_open(**id, true)) {
            let has_work = found.rows.get(id).is_some_and(|due| *due <= now)
                || found.backlog.iter().any(|(of, _)| of == id)
                || memory.gates.get(id).is_some_and(|gate| gate.has_wanted())
                || !memory.gates.contains_key(id) && memory.order.contains_key(id)
                || asks && is_asked_for(id);
            if has_work {
                steps.push_back(Step::InOrder(*id));
            }
        }
        self.next_step(who, steps);
    }

    /// All statements of a claim were sent.
    fn claimed(&mut self, who: Who) {
        let memory = self.memory(who);
        memory.is_claiming = false;
        if std::mem::take(&mut memory.claims_again) {
            self.claim(who);
        }
    }

    pub(super) fn next_step(&mut self, who: Who, mut steps: VecDeque<Step>) {
        let room = (self.weather.permits * 4).saturating_sub(self.memory(who).ahead.len());
        match steps.pop_front() {
            None => self.claimed(who),
            Some(_) if self.memory(who).is_stopping => self.claimed(who),
            Some(Step::TakeOver) => self.take_over(who, steps),
            Some(Step::InOrder(id)) => self.claim_in_order(who, id, room, steps),
            Some(_) if room == 0 => self.next_step(who, steps),
            Some(Step::Rows(ids)) => self.claim_rows(who, ids, room, steps),
            Some(Step::Suspects(ids)) => self.claim_backlog(who, ids, true, room, steps),
            Some(Step::Backlog(ids)) => self.claim_backlog(who, ids, false, room, steps),
        }
    }

    fn claim_rows(&mut self, who: Who, ids: Vec<i64>, room: usize, steps: VecDeque<Step>) {
        let room = u32::try_from(room.min(MOST)).unwrap_or(1);
        let claims: Vec<Claim> =
            ids.into_iter().map(|id| Claim { subscription: SubscriptionId(id), room, since: None }).collect();
        let (token, given) = (self.token(), self.now());
        self.statement(
            who,
            move |database| {
                let rows = database.claim_deliveries(&claims, token, LEASE);
                with_event(database, rows)
            },
            move |world, answer| {
                if let Ok(rows) = answer {
                    let jobs = world.jobs_of_rows(who, rows, (token, given));
                    world.memory(who).ahead.extend(jobs);
                    world.begin(who);
                }
                world.next_step(who, steps);
            },
        );
    }

    /// What a relay holds of rows that it has claimed.
    pub(super) fn jobs_of_rows(&mut self, who: Who, rows: Rows, (token, given): (Uuid, Millis)) -> Vec<Job> {
        let memory = self.memory(who);
        let mut jobs = Vec::with_capacity(rows.len());
        for (row, event) in rows {
            // What is in flight under an older lease of this relay goes on under this one.
            if let Some(held) = memory.rows.get(&row.id.0).filter(|held| !held.lease.is_lost.get()) {
                held.lease.token.set(token);
                held.lease.given.set(given);
                continue;
            }
            let held = Rc::new(RowHeld { id: row.id.0, lease: Lease::new(token, given) });
            memory.rows.insert(row.id.0, held.clone());
            jobs.push(Job {
                subscription: row.subscription_id.0,
                position: row.position.0,
                event,
                held: Held::Row(held),
                attempt: u32::try_from(row.attempt).unwrap_or(1),
                unfinished: u32::try_from(row.unfinished).unwrap_or(0),
                repeated: row.repeated,
                owed_since: row.owed_since,
                place: if row.key.is_some() { Place::InOrder } else { Place::Timed },
                lane: row.key.map(Into::into),
                passage: Passage::Free,
                is_sent: false,
            });
        }
        jobs
    }

    fn claim_backlog(&mut self, who: Who, ids: Vec<i64>, suspects: bool, room: usize, steps: VecDeque<Step>) {
        let mut wanted = room.min(MOST);
        let memory = self.memory(who);
        if suspects && memory.suspects_alone {
            if memory.ahead.iter().any(|job| job.blame() > 0) {
                return self.next_step(who, steps);
            }
            wanted = 1;
        }
        let claim = |id| BacklogClaim { subscription: SubscriptionId(id), wanted, since: 0, own_page: false };
        let claims: Vec<BacklogClaim> = ids.into_iter().map(claim).collect();
        let (token, given) = (self.token(), self.now());
        self.statement(
            who,
            move |database| {
                let pages = database.claim_backlog(&claims, suspects, token, LEASE);
                with_events(database, pages)
            },
            move |world, answer| {
                if let Ok(pages) = answer {
                    let mut jobs = world.jobs_of_pages(who, pages, (token, given));
                    let back = if suspects { world.keep_one_suspect(who, &mut jobs) } else { Vec::new() };
                    world.memory(who).ahead.extend(jobs);
                    world.give_back(who, back);
                    world.begin(who);
                    world.memory(who).claims_again |= suspects;
                }
                world.next_step(who, steps);
            },
        );
    }

    /// After two deaths a relay holds one suspect that has not begun. Returns the others.
    pub(super) fn keep_one_suspect(&mut self, who: Who, jobs: &mut Vec<Job>) -> Vec<Job> {
        let is_alone = jobs.iter().any(|job| job.blame() > 0);
        self.memory(who).suspects_alone = is_alone;
        if is_alone { jobs.split_off(1) } else { Vec::new() }
    }

    /// What a relay holds of pages that it has claimed.
    pub(super) fn jobs_of_pages(
        &mut self,
        who: Who,
        pages: Pages,
        (token, given): (Uuid, Millis),
    ) -> Vec<Job> {
        let memory = self.memory(who);
        let mut jobs = Vec::new();
        for (page, events) in pages {
            let held = Rc::new(PageHeld {
                id: page.id.0,
                lease: Lease::new(token, given),
                deaths: page.deaths,
                alone: page.alone,
                left: Cell::new(events.len()),
            });
            memory.pages.insert(page.id.0, held.clone());
            let pairs = page.entries.iter().flat_map(|entry| {
                let positions: Vec<i64> = entry.positions.iter().collect();
                positions.into_iter().map(|at| (entry.subscription.0, at, entry.owed_since))
            });
            for ((number, (subscription, position, owed_since)), event) in (0..).zip(pairs).zip(events) {
                jobs.push(Job {
                    subscription,
                    position,
                    event,
                    held: Held::Page(held.clone(), number),
                    attempt: 1,
                    unfinished: 0,
                    repeated: page.deaths > 0,
                    owed_since,
                    lane: None,
                    place: Place::Backlog,
                    passage: Passage::Free,
                    is_sent: false,
                });
            }
        }
        jobs
    }
}
