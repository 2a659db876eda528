//! Tells other relays of what waits in the database and is theirs to claim. Without it their polls find it.

use std::time::Instant;

use super::{
    await_work::DOORBELL,
    parts::{Base, Sending, Waiting},
};
use crate::{delivery::SubscriptionId, subscription::Subscription};

/// Ids in one notification, which has a limit of 8,000 bytes.
const IDS_TOGETHER: usize = 300;

/// Where something waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In the backlog.
    Backlog,
    /// In the backlog, and a relay has died with it.
    Suspects,
    /// In rows that are due, perhaps since long.
    Rows,
}

impl Place {
    pub(super) const ALL: [Self; 3] = [Self::Backlog, Self::Suspects, Self::Rows];

    /// Begins the notification. The ids of subscriptions follow.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Backlog => "backlog ",
            Self::Suspects => "suspects ",
            Self::Rows => "rows ",
        }
    }
}

/// Tells other relays that something waits for these subscriptions.
pub(super) async fn tell(base: &Base, place: Place, ids: &[SubscriptionId]) {
    if ids.is_empty() {
        return;
    }
    if let Err(error) = base.store.notify(DOORBELL, &messages(place, ids)).await {
        base.telemetry.database_failed("route", &error);
    }
}

/// Of these subscriptions those that this relay does not deliver now.
pub(super) fn elsewhere(
    base: &Base,
    sending: &Sending,
    waiting: &Waiting,
    ids: impl IntoIterator<Item = SubscriptionId>,
) -> Vec<SubscriptionId> {
    let index = base.index.load();
    let is_elsewhere =
        |id: &SubscriptionId| index.get(*id).is_some_and(|one| one.is_delivered_elsewhere(sending, waiting));
    let mut elsewhere: Vec<SubscriptionId> = ids.into_iter().filter(is_elsewhere).collect();
    elsewhere.sort_unstable();
    elsewhere.dedup();
    elsewhere
}

impl Subscription {
    /// Whether another relay may deliver it, and not this one.
    pub(super) fn is_delivered_elsewhere(&self, sending: &Sending, waiting: &Waiting) -> bool {
        let others_may = || !waiting.other_relays.are_none();
        self.row.active
            && if self.is_ordered() {
                !sending.dispatch.is_gate_open(self.row.id)
            } else {
                !self.may_send() && others_may()
            }
    }
}

fn messages(place: Place, ids: &[SubscriptionId]) -> Vec<String> {
    let message = |ids: &[SubscriptionId]| {
        place.prefix().to_owned() + &ids.iter().map(|id| id.0.to_string()).collect::<Vec<_>>().join(" ")
    };
    ids.chunks(IDS_TOGETHER).map(message).collect()
}

/// Another relay tells of what waits. Anybody who may connect can send this: what is not known is not kept.
pub(super) fn hear(waiting: &Waiting, message: &str, is_known: impl Fn(SubscriptionId) -> bool) {
    let read = |place: Place| Some((place, message.strip_prefix(place.prefix())?));
    let Some((place, ids)) = Place::ALL.into_iter().find_map(read) else { return };
    let ids = ids.split(' ').filter_map(|id| id.parse().ok()).map(SubscriptionId);
    for id in ids.filter(|id| is_known(*id)) {
        match place {
            Place::Backlog => waiting.schedule.hold_back(id, false),
            Place::Suspects => waiting.schedule.hold_back(id, true),
            Place::Rows => {
                waiting.schedule.look_back(id);
                waiting.schedule.note(id, Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_relay_tells_another_hears_if_it_knows_the_subscription() {
        let waiting = Waiting::default();
        let is_known = |id: SubscriptionId| id.0 < 10;
        let ids = |numbers: &[i64]| numbers.iter().copied().map(SubscriptionId).collect::<Vec<_>>();
        for message in
            messages(Place::Backlog, &ids(&[7, 8])).iter().chain(&messages(Place::Rows, &ids(&[9])))
        {
            hear(&waiting, message, is_known);
        }
        for message in messages(Place::Suspects, &ids(&[6])) {
            hear(&waiting, &message, is_known);
        }
        let waits = |id| waiting.schedule.waits(SubscriptionId(id));
        assert_eq!([6, 7].map(waits), [(false, true), (true, false)]);
        hear(&waiting, "due", is_known);
        hear(&waiting, "backlog 99 nine", is_known);
        let due = waiting.schedule.take_due(Instant::now() + std::time::Duration::from_millis(10));
        assert_eq!(due.rows.into_iter().collect::<Vec<_>>(), ids(&[9]));
        assert_eq!(due.all.into_iter().collect::<Vec<_>>(), ids(&[6, 7, 8, 9]));
    }

    #[test]
    fn a_notification_is_short_enough() {
        let ids = vec![SubscriptionId(i64::MAX); 1_000];
        let messages = messages(Place::Backlog, &ids);
        assert_eq!(messages.len(), 4);
        assert!(messages.iter().all(|message| message.len() < 8_000));
    }
}
