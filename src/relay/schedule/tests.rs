//! What is noted comes back when it is due, and nothing is passed over.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use chrono::DateTime;

use super::{KeyedRows, STEP, Schedule, claimed::LOOK_AGAIN};
use crate::{delivery::SubscriptionId, store::Claim};

fn ids(numbers: &[i64]) -> BTreeSet<SubscriptionId> {
    numbers.iter().copied().map(SubscriptionId).collect()
}

#[test]
fn what_is_noted_comes_back_when_it_is_due_and_not_before() {
    let schedule = Schedule::default();
    let now = Instant::now();
    schedule.note(SubscriptionId(1), now + Duration::from_millis(20));
    schedule.note(SubscriptionId(2), now + Duration::from_secs(60));
    assert!(schedule.take_due(now).all.is_empty());
    let next = schedule.next().unwrap();
    assert!(next >= now + Duration::from_millis(20) && next <= now + Duration::from_millis(40));
    assert_eq!(schedule.take_due(next).rows, ids(&[1]));
    assert!(schedule.next().unwrap() > now + Duration::from_secs(50));
}

#[test]
fn a_redriven_delivery_is_tried_once() {
    let schedule = Schedule::default();
    let (first, second) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + chrono::TimeDelta::seconds(1));
    assert!(schedule.ask(SubscriptionId(7), first));
    assert_eq!(schedule.take_asked(SubscriptionId(7)), Some(first));
    assert!(!schedule.ask(SubscriptionId(7), first), "the poll sees it again");
    assert_eq!(schedule.take_asked(SubscriptionId(7)), None);
    assert!(schedule.ask(SubscriptionId(7), second));
    assert_eq!(schedule.take_asked(SubscriptionId(7)), Some(second));
}

#[test]
fn those_behind_are_always_due() {
    let schedule = Schedule::default();
    schedule.fall_behind(SubscriptionId(7));
    assert_eq!(schedule.take_due(Instant::now()).rows, ids(&[7]));
    assert_eq!(schedule.take_due(Instant::now()).rows, ids(&[7]));
    schedule.catch_up(SubscriptionId(7));
    assert!(schedule.take_due(Instant::now()).all.is_empty());
}

#[test]
fn rows_are_not_claimed_for_a_subscription_that_has_only_a_backlog() {
    let schedule = Schedule::default();
    schedule.hold_back(SubscriptionId(7), false);
    schedule.fall_behind(SubscriptionId(8));
    let due = schedule.take_due(Instant::now());
    assert_eq!((due.rows, due.all), (ids(&[8]), ids(&[7, 8])));
}

#[test]
fn a_subscription_that_falls_behind_during_a_claim_is_claimed_for_again() {
    let schedule = Schedule::default();
    schedule.note(SubscriptionId(7), Instant::now());
    while schedule.take_due(Instant::now()).all.is_empty() {}
    schedule.fall_behind(SubscriptionId(7)); // past events became due, or a breaker closed
    schedule.catch_up(SubscriptionId(7)); // the claim found nothing
    assert_eq!(schedule.take_due(Instant::now()).rows, ids(&[7]));
    schedule.catch_up(SubscriptionId(7));
    assert!(schedule.take_due(Instant::now()).all.is_empty());
}

#[test]
fn a_claim_does_not_pass_what_became_due_in_the_past_after_it_began() {
    let (schedule, id) = (Schedule::default(), SubscriptionId(7));
    let since = DateTime::UNIX_EPOCH;
    schedule.look_back(id); // an urgent event was routed
    schedule.take_due(Instant::now());
    let from = schedule.since(id);
    schedule.look_back(id); // and another one, beside the claim
    assert!(!schedule.has_seen_all(id, from, since));
    assert_eq!(schedule.since(id), None);
    schedule.take_due(Instant::now());
    assert!(schedule.has_seen_all(id, None, since));
    assert_eq!(schedule.since(id), Some(since));
    schedule.take_due(Instant::now());
    schedule.look_at_everything();
    assert!(!schedule.has_seen_all(id, Some(since), since));
}

#[tokio::test]
async fn who_waits_hears_of_what_is_due_sooner() {
    let schedule = Schedule::default();
    let now = Instant::now();
    schedule.note(SubscriptionId(7), now + Duration::from_secs(60));
    schedule.sooner.notified().await;
    schedule.note(SubscriptionId(7), now + Duration::from_secs(90));
    schedule.note(SubscriptionId(8), now + Duration::from_secs(30));
    schedule.sooner.notified().await;
    schedule.hold_back(SubscriptionId(9), false);
    schedule.sooner.notified().await;
    assert!(schedule.next().unwrap() <= now, "it may be claimed for at once");
    schedule.take_due(now);
    assert!(schedule.next().unwrap() > now, "that was read");
}

#[test]
fn what_cannot_be_claimed_before_a_time_is_claimed_for_then_and_once() {
    let schedule = Schedule::default();
    let then = Instant::now() + Duration::from_millis(50);
    schedule.hold_back_until(SubscriptionId(7), false, then);
    assert!(schedule.take_due(Instant::now()).all.is_empty());
    let next = schedule.next().unwrap();
    assert!(next >= then);
    assert_eq!(schedule.take_due(next).all, ids(&[7]));
    assert!(schedule.let_go(SubscriptionId(7), false), "the claim found nothing");
    assert!(schedule.take_due(next).all.is_empty());
}

#[test]
fn however_many_claims_find_it_locked_a_subscription_is_looked_at_again_once() {
    let schedule = Schedule::default();
    let claim = Claim { subscription: SubscriptionId(7), room: 8, since: None };
    let locked = KeyedRows { due: None, claimed: false, wants_keys: false };
    let began = Instant::now();
    for after in [0, 7, 20, 41] {
        let now = began + Duration::from_millis(after);
        schedule.keyed_rows_claimed(&claim, locked, DateTime::UNIX_EPOCH, now);
        schedule.ordered_backlog_claimed(claim.subscription, None, true, now);
    }
    let next = schedule.next().unwrap();
    assert!(next >= began + LOOK_AGAIN && next < began + LOOK_AGAIN + STEP * 2);
    assert_eq!(schedule.take_due(next).all, ids(&[7]));
    assert_eq!(schedule.waits(claim.subscription), (true, true));
    for is_suspect in [false, true] {
        schedule.let_go(claim.subscription, is_suspect);
    }
    schedule.take_due(next);
    assert_eq!(schedule.next(), None);
    schedule.keyed_rows_claimed(&claim, locked, DateTime::UNIX_EPOCH, next);
    assert!(schedule.next().unwrap() >= next + LOOK_AGAIN, "and then again");
}
