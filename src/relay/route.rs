//! New events to deliveries, in one statement. A crash here costs the wait of one lease: what was leased and not sent returns.
//!
//! While every subscription keeps up, no more is routed than can be sent at once: a backlog stays in the log and each of its
//! deliveries is written once, already leased. A subscription that is full, paused or tripped gets its rows without a lease
//! and never holds up the routing of the others.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use uuid::Uuid;

use super::delivery::Delivery;
use super::{
    Shared,
    breaker::Gate,
    deliver::{Deliver, Leased},
    matching::MatchCache,
    permits::{NoPermit, Permit},
    reload::Reload,
};
use crate::{
    event::Event,
    store::{Advance, Cursor, Error, NewDelivery, NewEvent},
    subscription::{Index, Subscription},
};

/// Events read in one step at most.
const PAGE: usize = 1_000;
/// And at least, lest a few free permits make pages tiny.
const SMALLEST_PAGE: usize = 16;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Events were routed. `more`: further ones are known to wait in the log; `waiting`: some deliveries were left to others.
    Routed { more: bool, waiting: bool },
    /// There is nothing new.
    Nothing,
    /// Another relay is routing.
    OthersRoute,
    /// Nobody has room: what is new stays in the log.
    NoRoom,
}

/// The route stage.
#[derive(Debug)]
pub(super) struct Route {
    shared: Arc<Shared>,
    /// Where routing stood last; none when another relay has moved it since.
    cursor: Option<Cursor>,
    /// Subscriptions that want events from before they were made, for which a step of ours has fixed what that is.
    fixed: HashSet<i64>,
    /// Deliveries an event was routed to lately: how many events fill the permits.
    fanout: f64,
    matches: MatchCache,
}

/// What one step is going to write.
struct Plan {
    rows: Vec<NewDelivery>,
    leased: Vec<(Arc<Event>, bool, Arc<Subscription>, Permit)>,
    advance: Advance,
    routed: usize,
    waiting: bool,
}

impl Route {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, cursor: None, fixed: HashSet::new(), fanout: 1.0, matches: MatchCache::default() }
    }

    pub(super) async fn route(&mut self, reload: &mut Reload, deliver: &mut Deliver) -> Result<Step, Error> {
        let index = self.shared.index.load_full();
        if self.must_hold(&index) {
            return Ok(Step::NoRoom);
        }
        let cursor = match self.cursor.take() {
            Some(cursor) => cursor,
            None => self.shared.store.load_cursor(0).await?,
        };
        let free = self.shared.permits.free();
        let Some(read) = self
            .shared
            .store
            .read_events(&cursor, self.page(free), free > 0 || index.needs_payload())
            .await?
        else {
            self.matches.forget();
            return Ok(Step::OthersRoute); // and the cursor is loaded anew
        };
        // An event committed after a subscription is always matched against it.
        if read.generation != index.generation {
            reload.load().await?;
        }
        let starting: Vec<i64> =
            self.shared.index.load().starting().filter(|id| !self.fixed.contains(id)).collect();
        if read.events.is_empty() && !read.closes_window() && !read.was_slow && starting.is_empty() {
            self.cursor = Some(cursor);
            return Ok(Step::Nothing);
        }
        let index = self.shared.index.load_full();
        let (more_to_read, events) = (read.has_more(), &read.events);
        self.matches.evaluate(&self.shared, &index, events).await?;
        let plan = self.plan(&index, events);
        if plan.routed == 0 && !events.is_empty() {
            self.cursor = Some(cursor);
            return Ok(Step::NoRoom);
        }
        let token = Uuid::new_v4();
        let began = Instant::now();
        let lease = self.shared.settings.lease;
        let Some((next, ids)) = self
            .shared
            .store
            .advance_cursor(&cursor, &read, plan.advance, &plan.rows, token, lease, &starting)
            .await?
        else {
            self.matches.forget();
            return Ok(Step::OthersRoute);
        };
        self.cursor = Some(next);
        if !starting.is_empty() {
            self.fixed.extend(starting);
            self.shared.starts.notify_one();
        }
        self.matches.settle(&self.shared, &index, events.iter().take(plan.routed));
        let more = more_to_read || plan.advance != Advance::All;
        let step = Step::Routed { more, waiting: plan.waiting };
        self.shared.telemetry.routed(plan.routed, plan.rows.len());
        if plan.routed > 0 {
            #[expect(clippy::cast_precision_loss, reason = "a page is small")]
            let fanout = plan.rows.len() as f64 / plan.routed as f64;
            self.fanout = 0.8 * self.fanout + 0.2 * fanout;
        }
        let owed_since = self.shared.clock.now();
        let leased = plan
            .leased
            .into_iter()
            .zip(ids)
            .map(|((event, payload_read, subscription, permit), id)| Leased {
                delivery: Delivery {
                    id,
                    event,
                    subscription,
                    owed_since,
                    attempted_at: owed_since,
                    attempt: 1,
                    lease_token: token,
                    unfinished: 0,
                },
                payload_read,
                permit,
            })
            .collect();
        deliver.begin(leased, began).await?;
        Ok(step)
    }

    /// How many events to read: as many as fill the free permits.
    fn page(&self, free: u32) -> usize {
        if free == 0 {
            return PAGE;
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a float saturates, and the result is clamped"
        )]
        let fitting = (f64::from(free) / self.fanout.max(1.0)) as usize;
        fitting.clamp(SMALLEST_PAGE, PAGE)
    }

    /// Whether routing must wait for room: there are subscriptions to send to, and not one of them has any.
    fn must_hold(&self, index: &Index) -> bool {
        if self.shared.permits.free() == 0 { index.sendable() > 0 } else { self.all_are_full(index, None) }
    }

    /// Whether every subscription that may be sent to has all its permits in flight; `full` is known to have. Only then may
    /// events be left in the log: were there one that has room, the others' backlog must not stand before its events.
    fn all_are_full(&self, index: &Index, full: Option<i64>) -> bool {
        // With many subscriptions it is hardly ever so, and not worth the look.
        if index.sendable() == 0 || index.sendable() > 64 {
            return false;
        }
        let now = self.shared.clock.now();
        let mut sendable = index.iter().filter(|subscription| self.may_send(subscription, now)).peekable();
        sendable.peek().is_some()
            && sendable.all(|subscription| Some(subscription.row.id) == full || self.room(subscription) == 0)
    }

    fn room(&self, subscription: &Subscription) -> u32 {
        self.shared.permits.room(subscription.row.id, subscription.own_limit())
    }

    fn plan(&self, index: &Index, events: &[NewEvent]) -> Plan {
        let shared = &self.shared;
        let mut plan = Plan {
            rows: Vec::with_capacity(events.len()),
            leased: Vec::with_capacity(events.len()),
            advance: Advance::All,
            routed: 0,
            waiting: false,
        };
        let now = shared.clock.now();
        let mut sendable: HashMap<i64, bool> = HashMap::new();
        let mut previous = None;
        for new in events {
            let matching: Vec<&Arc<Subscription>> = if index.is_choosy() {
                self.matches.wanted_by(new.event.position).iter().filter_map(|id| index.get(*id)).collect()
            } else {
                index.matching(&new.event)
            };
            let later = new.deliver_after.is_some_and(|then| then > now);
            let mut event: Option<Arc<Event>> = None;
            let rows_before = plan.rows.len();
            let leased_before = plan.leased.len();
            let mut hold = false;
            for subscription in matching {
                let id = subscription.row.id;
                let may_send = *sendable.entry(id).or_insert_with(|| self.may_send(subscription, now));
                let permit = if may_send && !later && !shared.schedule.is_behind(id) {
                    match shared.permits.take_one(id, subscription.own_limit()) {
                        Ok(permit) => Some(permit),
                        // One event for more subscriptions than there are permits goes all the same: to some at once.
                        Err(NoPermit::AllTaken) if plan.routed == 0 && plan.leased.len() > leased_before => {
                            shared.schedule.fall_behind(id);
                            None
                        }
                        Err(NoPermit::AllTaken) => {
                            hold = true;
                            break;
                        }
                        // Where this event was leased to another one, that one had room.
                        Err(NoPermit::NoneForThis)
                            if plan.leased.len() == leased_before && self.all_are_full(index, Some(id)) =>
                        {
                            hold = true;
                            break;
                        }
                        Err(NoPermit::NoneForThis) => {
                            shared.schedule.fall_behind(id);
                            None
                        }
                    }
                } else {
                    None
                };
                let leased = permit.is_some();
                if let Some(permit) = permit {
                    let event = event.get_or_insert_with(|| Arc::new(new.event.clone()));
                    plan.leased.push((event.clone(), new.payload_read, subscription.clone(), permit));
                } else if later {
                    let wait =
                        new.deliver_after.and_then(|then| (then - now).to_std().ok()).unwrap_or_default();
                    shared.schedule.note(id, Instant::now() + wait);
                } else {
                    plan.waiting |= may_send;
                    shared.schedule.fall_behind(id);
                    if new.priority > 0 {
                        shared.schedule.look_back(id); // priority moves the due time into the past
                    }
                }
                plan.rows.push(NewDelivery {
                    position: new.event.position,
                    created_at: new.event.created_at,
                    subscription: id,
                    leased,
                    deliver_after: new.deliver_after,
                    priority: new.priority,
                });
            }
            if hold {
                // This event and those behind it stay in the log.
                plan.rows.truncate(rows_before);
                plan.leased.truncate(leased_before);
                plan.advance = Advance::UpTo(previous.unwrap_or(new.event.position - 1));
                break;
            }
            plan.routed += 1;
            previous = Some(new.event.position);
        }
        plan
    }

    fn may_send(&self, subscription: &Subscription, now: chrono::DateTime<chrono::Utc>) -> bool {
        subscription.may_send()
            && subscription.row.paused_until.is_none_or(|until| until <= now)
            && subscription.outlet.destination().is_none_or(|destination| {
                self.shared.breakers.gate(destination, Instant::now()) == Gate::Closed
            })
    }
}
