//! Routing of a relay: reads, plans with the product's `plan`, and commits.

use std::{collections::BTreeMap, rc::Rc, sync::Arc};

use pgoutbox::{
    delivery::SubscriptionId,
    event::Event,
    relay::decisions::{Place, Plan, Room, Standing, Wanting, plan},
    store::{Advance, Routed},
    subscription::Subscription,
};

use super::{
    super::{
        database::{Cursor, Read, date, is_keyed},
        defect::Defect,
        world::{LEASE, Unanswered, Who, World},
    },
    Held, Job, Lease, PageHeld, Passage,
};

impl World {
    /// Looks for new events.
    pub(crate) fn route(&mut self, who: Who) {
        let most_ahead = self.weather.permits * 4;
        let memory = self.memory(who);
        if memory.is_stopping {
            return;
        }
        if memory.is_routing {
            memory.routes_again = true;
            return;
        }
        if memory.ahead.len() >= most_ahead {
            return; // it goes on when something is settled
        }
        memory.is_routing = true;
        memory.routes_again = false;
        let (known, page) = (memory.cursor.take(), self.weather.page);
        let positions = self.weather.positions;
        self.statement(
            who,
            move |database| {
                let cursor = known.unwrap_or_else(|| database.load_cursor());
                let read = database.read_events(&cursor, page, positions);
                read.map(|read| (cursor, read, database.crashes))
            },
            move |world, answer| match answer {
                Ok(Some((cursor, read, crashes))) => world.has_read(who, cursor, read, crashes),
                Ok(None) => world.routed(who, true),
                Err(Unanswered) => world.route_later(who),
            },
        );
    }

    fn route_later(&mut self, who: Who) {
        self.memory(who).cursor = None;
        self.after_at(who, 300, move |world| world.routed(who, true));
    }

    /// A step is over.
    fn routed(&mut self, who: Who, again: bool) {
        let memory = self.memory(who);
        memory.is_routing = false;
        if std::mem::take(&mut memory.routes_again) || again {
            self.route(who);
        }
    }

    fn has_read(&mut self, who: Who, cursor: Cursor, read: Read, crashes: u64) {
        if read.generation > self.memory(who).generation && !self.has(Defect::StaleSubscriptions) {
            return self.reload_and_route(who, cursor, read, crashes);
        }
        if read.events.is_empty() && !read.is_of_window() {
            self.memory(who).cursor = Some(cursor);
            return self.routed(who, false);
        }
        let plan = self.plan(who, &read);
        if plan.events == 0 && !read.events.is_empty() {
            self.memory(who).cursor = Some(cursor);
            return self.routed(who, false);
        }
        // Matching takes its time.
        let wait = self.travel();
        self.after_at(who, wait, move |world| world.advance(who, cursor, read, plan, crashes));
    }

    /// An event committed after a subscription is always matched against it.
    fn reload_and_route(&mut self, who: Who, cursor: Cursor, read: Read, crashes: u64) {
        self.statement(
            who,
            |database| (database.data.generation, database.data.subscriptions.clone()),
            move |world, answer| match answer {
                Ok((generation, index)) => {
                    world.follow(who, generation, index);
                    world.has_read(who, cursor, read, crashes);
                }
                Err(Unanswered) => world.route_later(who),
            },
        );
    }

    /// Follows a change of subscriptions.
    pub(super) fn follow(&mut self, who: Who, generation: i64, index: BTreeMap<i64, Arc<Subscription>>) {
        let memory = self.memory(who);
        (memory.generation, memory.index) = (generation, index);
        self.claim(who);
        self.begin(who);
    }

    fn plan(&mut self, who: Who, read: &Read) -> Plan {
        let (permits, now) = (self.weather.permits, self.now());
        let ignores = self.has(Defect::OrganizationIgnored);
        let forgets_paused = self.has(Defect::PausedIsOwedNothing);
        let memory = &self.relays[who.relay].memory;
        let wants = |one: &Subscription, event: &Event| {
            one.wants_plainly(event)
                || ignores
                    && one
                        .wants_plainly(&Event { organization: one.row.organization.clone(), ..event.clone() })
        };
        let ahead = memory.ahead.len();
        let together = (permits * 4).saturating_sub(ahead);
        plan(
            &read.events,
            date(now),
            Room { together, each: 2 },
            |event| Wanting {
                wanted_by: memory
                    .index
                    .values()
                    .filter(|one| wants(one, event) && (one.row.active || !forgets_paused))
                    .collect(),
                undecided: Vec::new(),
            },
            |one| {
                let mine = memory.ahead.iter().filter(|job| job.subscription == one.row.id.0).count();
                let room = if one.row.active { (permits * 2).saturating_sub(mine) } else { 0 };
                let mut standing = Standing::new(one, one.row.active, room);
                standing.is_elsewhere = is_keyed(one) && !memory.gates.contains_key(&one.row.id.0);
                standing
            },
            |standings| {
                standings.values().any(|one| one.may_send) && standings.values().all(|one| one.room == 0)
            },
        )
    }

    fn advance(&mut self, who: Who, cursor: Cursor, read: Read, plan: Plan, crashes: u64) {
        let token = self.token();
        let given = self.now();
        let advance = plan.advance.map_or(Advance::All, Advance::UpTo);
        let events: Vec<Rc<Event>> = read.events.iter().map(|new| Rc::new(new.event.clone())).collect();
        let Plan { routed, leased, .. } = plan;
        let is_early = self.has(Defect::SendBeforeCommit);
        if is_early {
            for (subscription, at) in leased.iter().flatten() {
                let event = events[*at].clone();
                self.send_unasked(who, subscription.row.id.0, event);
            }
        }
        let is_pinned = !self.has(Defect::RoutesWhatWasReadBeforeACrash);
        if self.database.crashes != crashes && is_pinned {
            return self.route_later(who); // the connection on which it was read is gone
        }
        let splits = self.has(Defect::CursorBeforeDeliveries);
        let run = move |database: &mut super::super::database::Database| {
            let nothing = Routed::default();
            let written = if splits { &nothing } else { &routed };
            let moved = database.advance_cursor(&cursor, &read, advance, written, (token, LEASE));
            let moved = moved.map(|(next, ids, since)| (next, ids, since, leased));
            moved.map(|moved| (moved, splits.then_some((read, routed))))
        };
        self.send(who, is_pinned, run, move |world, answer| match answer {
            Ok(Some(((next, ids, since, leased), None))) => {
                world.memory(who).cursor = Some(next);
                world.hold_pages(who, &ids, leased, &events, (token, given), since);
                world.routed(who, true);
            }
            Ok(Some(((next, _, _, leased), Some((read, routed))))) => {
                world.write_what_was_routed(who, (next, read, routed, leased), events);
            }
            Ok(None) => world.routed(who, true),
            Err(Unanswered) => world.route_later(who),
        });
    }

    /// The second half of a step that was cut in two by mistake.
    fn write_what_was_routed(
        &mut self,
        who: Who,
        (next, read, routed, leased): (Cursor, Read, Routed, Leased),
        events: Vec<Rc<Event>>,
    ) {
        let (token, given) = (self.token(), self.now());
        self.statement(
            who,
            move |database| {
                let cursor = database.load_cursor();
                database.advance_cursor(&cursor, &read, Advance::All, &routed, (token, LEASE))
            },
            move |world, answer| match answer {
                Ok(Some((_, ids, since))) => {
                    drop(next);
                    world.hold_pages(who, &ids, leased, &events, (token, given), since);
                    world.routed(who, true);
                }
                Ok(None) => world.routed(who, true),
                Err(Unanswered) => world.route_later(who),
            },
        );
    }

    fn hold_pages(
        &mut self,
        who: Who,
        ids: &[pgoutbox::delivery::PageId],
        leased: Leased,
        events: &[Rc<Event>],
        (token, given): (uuid::Uuid, i64),
        owed_since: chrono::DateTime<chrono::Utc>,
    ) {
        let is_sent = self.has(Defect::SendBeforeCommit);
        let memory = self.memory(who);
        for (id, pairs) in ids.iter().zip(leased) {
            let page = Rc::new(PageHeld {
                id: id.0,
                lease: Lease::new(token, given),
                deaths: 0,
                alone: 0,
                left: std::cell::Cell::new(pairs.len()),
            });
            memory.pages.insert(id.0, page.clone());
            for (number, (subscription, at)) in (0..).zip(pairs) {
                memory.ahead.push_back(Job {
                    subscription: subscription.row.id.0,
                    position: events[at].position.0,
                    event: Some(events[at].clone()),
                    held: Held::Page(page.clone(), number),
                    attempt: 1,
                    unfinished: 0,
                    repeated: false,
                    owed_since,
                    lane: None,
                    place: Place::Backlog,
                    passage: Passage::Free,
                    is_sent,
                });
            }
        }
        self.begin(who);
        self.claim(who);
    }
}

/// The leased pairs of each page.
type Leased = Vec<Vec<(Arc<Subscription>, usize)>>;

/// An id as the product has it.
pub(super) fn target(id: i64) -> SubscriptionId {
    SubscriptionId(id)
}
