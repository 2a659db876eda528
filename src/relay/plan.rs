//! What one routing step writes. A function of its arguments, without a database.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use crate::{
    delivery::{SubscriptionId, ranges::Ranges},
    event::{Event, Position},
    store::{NewDelivery, NewEvent, NewPage, Routed},
    subscription::Subscription,
};

/// Pairs of an event and a subscription in one step. One event may have more.
const PAIRS: usize = 16_384;
/// Pairs in one page.
const PAIRS_IN_PAGE: usize = 4_096;

/// What one step is going to write.
#[derive(Debug, Default)]
pub struct Plan {
    /// Rows that it writes.
    pub routed: Routed,
    /// The leased pairs of each page of `routed.pages`, in the order of their numbers: the subscription, and
    /// the index of the event.
    pub leased: Vec<Vec<(Arc<Subscription>, usize)>>,
    /// Subscriptions for which something goes to the backlog.
    pub held_back: Vec<SubscriptionId>,
    /// Number of events that are routed, from the first.
    pub events: usize,
    /// Number of deliveries made of them.
    pub pairs: usize,
    /// Position of the last event that is routed, if others stay in the log.
    pub advance: Option<Position>,
    /// Whether deliveries go to the backlog that could be sent.
    pub waiting: bool,
    /// Ordered subscriptions for which something goes to the backlog and that this relay does not deliver.
    pub elsewhere: Vec<SubscriptionId>,
}

/// The subscriptions that an event may be owed to.
#[derive(Debug)]
pub struct Wanting<'i> {
    /// Those that want it.
    pub wanted_by: Vec<&'i Arc<Subscription>>,
    /// Their conditions are evaluated when the event is claimed for them.
    pub undecided: Vec<&'i Arc<Subscription>>,
}

/// What is planned for one subscription.
#[derive(Debug)]
pub struct Standing {
    subscription: Arc<Subscription>,
    /// How many more deliveries may be leased for it.
    pub room: usize,
    /// Whether it can be sent to now.
    pub may_send: bool,
    /// Whether all it is owed goes to the backlog, which keeps its order.
    is_ordered: bool,
    /// Whether another relay may deliver it now.
    pub is_elsewhere: bool,
    leased: Vec<usize>,
    waiting: Ranges,
}

/// How many deliveries one step may lease.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// For all subscriptions together.
    pub together: usize,
    /// For each subscription, even when the others have taken the rest.
    pub each: usize,
}

impl Standing {
    /// Nothing is planned for it yet.
    pub fn new(subscription: &Arc<Subscription>, may_send: bool, room: usize) -> Self {
        let is_ordered = subscription.is_ordered();
        let subscription = subscription.clone();
        let (leased, waiting) = (Vec::new(), Ranges::default());
        Self { subscription, room, may_send, is_ordered, is_elsewhere: false, leased, waiting }
    }
}

/// Plans a step over `events`, which are in the order of their positions. `standing` is asked once for each
/// subscription. If `all_are_full` says that no subscription has room, the other events stay in the log.
pub fn plan<'i>(
    events: &[NewEvent],
    clock: DateTime<Utc>,
    room: Room,
    wanting: impl Fn(&Event) -> Wanting<'i>,
    standing: impl Fn(&Arc<Subscription>) -> Standing,
    all_are_full: impl Fn(&HashMap<SubscriptionId, Standing>) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    let mut standings: HashMap<SubscriptionId, Standing> = HashMap::new();
    let mut previous = None;
    // Each subscription alone was asked how much it has room for: together they may have less.
    let mut leased = 0;
    for (at, new) in events.iter().enumerate() {
        let position = new.event.position;
        let Wanting { wanted_by, undecided } = match new.routed_early {
            true => Wanting { wanted_by: Vec::new(), undecided: Vec::new() },
            false => wanting(&new.event),
        };
        for subscription in wanted_by.iter().chain(&undecided) {
            standings.entry(subscription.row.id).or_insert_with(|| standing(subscription));
        }
        let is_later = new.deliver_after.is_some_and(|then| then > clock);
        let of = |one: &&Arc<Subscription>| standings.get(&one.row.id);
        let no_room = wanted_by.iter().all(|one| of(one).is_none_or(|standing| standing.room == 0));
        let could_send = wanted_by.iter().any(|one| of(one).is_some_and(|standing| standing.may_send));
        let is_full = !is_later && no_room && could_send;
        if at > 0 && plan.pairs + wanted_by.len() + undecided.len() > PAIRS
            || is_full && all_are_full(&standings)
        {
            plan.advance = Some(previous.unwrap_or(Position(position.0 - 1)));
            break;
        }
        for subscription in wanted_by {
            let Some(standing) = standings.get_mut(&subscription.row.id) else { continue };
            plan.pairs += 1;
            let has_room = standing.room > 0 && (leased < room.together || standing.leased.len() < room.each);
            // In the order of its key an event that is not for later takes its turn.
            if is_later || new.priority > 0 && !has_room && !standing.is_ordered {
                plan.routed.timed.push(NewDelivery {
                    position,
                    created_at: new.event.created_at,
                    subscription: subscription.row.id,
                    deliver_after: new.deliver_after,
                    priority: new.priority,
                });
            } else if standing.is_ordered {
                standing.room = standing.room.saturating_sub(1);
                standing.waiting.insert(position);
            } else if has_room {
                leased += 1;
                standing.room -= 1;
                standing.leased.push(at);
            } else {
                plan.waiting |= standing.may_send;
                standing.waiting.insert(position);
            }
        }
        for subscription in undecided {
            let Some(standing) = standings.get_mut(&subscription.row.id) else { continue };
            plan.pairs += 1;
            standing.waiting.insert(position);
        }
        plan.events += 1;
        previous = Some(position);
    }
    lay_out(events, standings, &mut plan);
    plan
}

/// Makes pages of what is leased: each subscription whose sink settles by itself has pages of its own, the
/// others share them.
fn lay_out(events: &[NewEvent], standings: HashMap<SubscriptionId, Standing>, plan: &mut Plan) {
    let standings: BTreeMap<SubscriptionId, Standing> = standings.into_iter().collect();
    let mut page = PageInMaking::default();
    let mut own = Vec::new();
    for (id, standing) in standings {
        if !standing.waiting.is_empty() {
            plan.routed.waiting.push((id, standing.waiting));
            plan.held_back.push(id);
            if standing.is_elsewhere {
                plan.elsewhere.push(id);
            }
        }
        if standing.leased.is_empty() {
            continue;
        }
        if standing.subscription.outlet.settles() {
            own.push((standing.subscription, standing.leased));
            continue;
        }
        for part in standing.leased.chunks(PAIRS_IN_PAGE) {
            if page.pairs.len() + part.len() > PAIRS_IN_PAGE {
                page.finish(plan);
            }
            page.add(&standing.subscription, part, events);
        }
    }
    page.finish(plan);
    for (subscription, leased) in own {
        for part in leased.chunks(PAIRS_IN_PAGE) {
            page.add(&subscription, part, events);
            page.finish(plan);
        }
    }
}

#[derive(Default)]
struct PageInMaking {
    page: NewPage,
    pairs: Vec<(Arc<Subscription>, usize)>,
}

impl PageInMaking {
    fn add(&mut self, subscription: &Arc<Subscription>, part: &[usize], events: &[NewEvent]) {
        let positions = part.iter().filter_map(|at| events.get(*at)).map(|new| new.event.position).collect();
        self.page.entries.push((subscription.row.id, positions));
        self.pairs.extend(part.iter().map(|at| (subscription.clone(), *at)));
    }

    fn finish(&mut self, plan: &mut Plan) {
        if !self.pairs.is_empty() {
            plan.routed.pages.push(std::mem::take(&mut self.page));
            plan.leased.push(std::mem::take(&mut self.pairs));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{event::Event, sink::Registry, store::SubscriptionRow};

    fn subscription(id: i64) -> Arc<Subscription> {
        let id = SubscriptionId(id);
        let row =
            SubscriptionRow { id, ..SubscriptionRow::new(&format!("s{id}"), &["**"], "none", json!({})) };
        Arc::new(Subscription::bind(row, &Registry::default()).0)
    }

    fn events(positions: std::ops::Range<i64>) -> Vec<NewEvent> {
        positions
            .map(|position| NewEvent {
                event: Event::sample(position),
                payload_read: true,
                priority: 0,
                deliver_after: None,
                routed_early: false,
            })
            .collect()
    }

    fn planned(events: &[NewEvent], subscriptions: &[(Arc<Subscription>, bool, usize)], full: bool) -> Plan {
        plan(
            events,
            DateTime::UNIX_EPOCH,
            Room { together: 4_096, each: 8 },
            |_| Wanting {
                wanted_by: subscriptions.iter().map(|(one, ..)| one).collect(),
                undecided: Vec::new(),
            },
            |asked| {
                let found = subscriptions.iter().find(|(one, ..)| one.row.id == asked.row.id);
                let (_, may_send, room) = found.unwrap();
                Standing::new(asked, *may_send, *room)
            },
            |_| full,
        )
    }

    fn waiting(plan: &Plan) -> Vec<(i64, String)> {
        plan.routed.waiting.iter().map(|(id, ranges)| (id.0, ranges.to_string())).collect()
    }

    #[test]
    fn a_subscription_without_room_goes_to_the_backlog_and_holds_up_no_other() {
        let plan =
            planned(&events(10..14), &[(subscription(1), true, 100), (subscription(2), true, 1)], false);
        assert_eq!((plan.events, plan.pairs, plan.advance), (4, 8, None));
        assert_eq!(plan.leased.iter().map(Vec::len).collect::<Vec<_>>(), [5]);
        assert_eq!(waiting(&plan), [(2, "{[11,14)}".to_owned())]);
        assert_eq!((plan.held_back, plan.waiting), (vec![SubscriptionId(2)], true));
    }

    #[test]
    fn a_subscription_that_cannot_be_sent_to_gets_ranges_however_many_events_there_are() {
        let plan = planned(&events(0..1_000), &[(subscription(1), false, 0)], true);
        assert_eq!((plan.events, plan.advance, plan.waiting), (1_000, None, false));
        assert_eq!(waiting(&plan), [(1, "{[0,1000)}".to_owned())]);
    }

    #[test]
    fn events_stay_in_the_log_only_when_no_subscription_has_room() {
        let subscriptions = [(subscription(1), true, 2), (subscription(2), true, 2)];
        let plan = planned(&events(5..10), &subscriptions, true);
        assert_eq!((plan.events, plan.advance), (2, Some(Position(6))));
        assert!(plan.routed.waiting.is_empty());
        assert_eq!(planned(&events(5..10), &subscriptions, false).events, 5);
    }

    #[test]
    fn many_subscriptions_with_room_lease_no_more_together_than_there_is() {
        let many: Vec<_> = (0..300).map(|id| (subscription(id), true, 256)).collect();
        let plan = planned(&events(0..50), &many, false);
        assert_eq!((plan.events, plan.pairs), (50, 15_000));
        assert_eq!(plan.leased.iter().map(Vec::len).sum::<usize>(), 4_096);
        assert_eq!(waiting(&plan).len(), 300);
        let many: Vec<_> = (0..1_000).map(|id| (subscription(id), true, 256)).collect();
        let plan = planned(&events(0..16), &many, false);
        assert!(
            plan.leased.iter().flatten().filter(|(one, _)| one.row.id == SubscriptionId(999)).count() >= 4,
            "its share"
        );
    }

    #[test]
    fn a_step_has_a_limit_of_pairs_but_an_event_of_any_size_is_routed() {
        let many: Vec<_> = (0..20_000).map(|id| (subscription(id), true, 10)).collect();
        let plan = planned(&events(0..3), &many, false);
        assert_eq!((plan.events, plan.pairs, plan.advance), (1, 20_000, Some(Position(0))));
        assert!(plan.leased.iter().all(|page| page.len() <= PAIRS_IN_PAGE));
    }

    #[test]
    fn what_is_due_later_or_urgent_without_room_gets_a_row() {
        let mut events = events(0..3);
        events[0].deliver_after = Some(DateTime::UNIX_EPOCH + chrono::TimeDelta::hours(1));
        events[1].priority = 5;
        let plan = planned(&events, &[(subscription(1), true, 0)], false);
        assert_eq!(plan.routed.timed.iter().map(|row| row.position.0).collect::<Vec<_>>(), [0, 1]);
        assert_eq!(waiting(&plan), [(1, "{[2,3)}".to_owned())]);
    }
}
