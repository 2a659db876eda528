//! Breakers of hosts and of subscriptions.

use super::*;
use crate::delivery::Reason;

const FAILED: Outcome = Outcome::Retry { reason: Reason::ServerError, after: None };

fn recorded(breakers: &Breakers, there: &Arc<str>, outcome: &Outcome, now: Instant) -> Change {
    breakers
        .record(SubscriptionId(1), there, outcome, now)
        .first()
        .map_or(Change::None, |(_, change)| *change)
}

fn tripped(breakers: &Breakers, there: &Arc<str>, now: Instant) {
    for _ in 0..IN_A_ROW {
        breakers.record(SubscriptionId(1), there, &FAILED, now);
    }
}

#[test]
fn it_opens_after_twenty_failures_in_a_row_and_not_before() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    for _ in 1..IN_A_ROW {
        assert_eq!(recorded(&breakers, &there, &FAILED, now), Change::None);
    }
    assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Closed);
    assert_eq!(recorded(&breakers, &there, &FAILED, now), Change::Opened(OPEN_FOR));
    assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Open(now + OPEN_FOR));
    assert_eq!(breakers.gate(SubscriptionId(2), &Arc::from("https://b"), now), Gate::Closed);
}

#[test]
fn one_that_only_waits_for_something_to_probe_with_is_half_open_and_holds_nothing_back() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let state = |now| breakers.not_closed(now).into_values().next();
    tripped(&breakers, &there, now);
    assert_eq!((state(now), breakers.open(now).len()), (Some(BreakerState::Open), 1));
    let later = now + OPEN_FOR;
    assert_eq!((state(later), breakers.open(later).len()), (Some(BreakerState::HalfOpen), 0));
    breakers.begin_probe(SubscriptionId(1), &there, later);
    assert_eq!((state(later), breakers.open(later).len()), (Some(BreakerState::HalfOpen), 1));
    assert_eq!(recorded(&breakers, &there, &Outcome::Delivered, later), Change::Closed);
    assert_eq!((state(later), breakers.open(later).len()), (None, 0));
}

#[test]
fn it_opens_when_most_of_a_minute_failed() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let mut opened = false;
    for round in 0..40 {
        let outcome = if round % 5 == 4 { Outcome::Delivered } else { FAILED };
        opened |= matches!(recorded(&breakers, &there, &outcome, now), Change::Opened(_));
    }
    assert!(opened);
}

#[test]
fn one_probe_goes_through_and_decides() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    tripped(&breakers, &there, now);
    let later = now + OPEN_FOR;
    assert_eq!(breakers.gate(SubscriptionId(1), &there, later), Gate::Probe);
    breakers.begin_probe(SubscriptionId(1), &there, later);
    assert!(matches!(breakers.gate(SubscriptionId(1), &there, later), Gate::Open(_)), "only one");
    assert_eq!(recorded(&breakers, &there, &FAILED, later), Change::Opened(OPEN_FOR * 2));
    let later = later + OPEN_FOR * 2;
    breakers.begin_probe(SubscriptionId(1), &there, later);
    assert_eq!(recorded(&breakers, &there, &Outcome::Delivered, later), Change::Closed);
    assert_eq!(breakers.gate(SubscriptionId(1), &there, later), Gate::Closed);
}

#[test]
fn a_probe_that_is_answered_closes_it_whatever_the_answer_is() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let answer = Outcome::Retry { reason: Reason::FunctionFailed, after: None };
    tripped(&breakers, &there, now);
    assert_eq!(recorded(&breakers, &there, &answer, now), Change::None, "a straggler");
    breakers.begin_probe(SubscriptionId(1), &there, now + OPEN_FOR);
    assert_eq!(recorded(&breakers, &there, &answer, now + OPEN_FOR), Change::Closed);
}

#[test]
fn after_a_probe_without_evidence_the_next_is_let_through_at_once() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let nothing = Outcome::Rejected { reason: Reason::TransformFailed };
    tripped(&breakers, &there, now);
    assert!(!breakers.probe_again(SubscriptionId(1), &there, &nothing, now), "a straggler");
    let later = now + OPEN_FOR;
    breakers.begin_probe(SubscriptionId(1), &there, later);
    assert!(!breakers.probe_again(SubscriptionId(1), &there, &FAILED, later), "it is recorded");
    assert!(breakers.probe_again(SubscriptionId(1), &there, &nothing, later));
    assert_eq!(breakers.gate(SubscriptionId(1), &there, later), Gate::Probe);
    breakers.begin_probe(SubscriptionId(1), &there, later);
    assert_eq!(
        recorded(&breakers, &there, &FAILED, later),
        Change::Opened(OPEN_FOR * 2),
        "it remembers how long it was open"
    );
}

#[test]
fn the_clearest_outcome_of_a_batch_counts() {
    let of = |reason| Outcome::Retry { reason, after: None };
    let (nothing, answers) = (of(Reason::TemplateFailed), of(Reason::Refused));
    assert_eq!(clearest([&nothing, &answers, &FAILED, &Outcome::Delivered].into_iter()), Some(2));
    assert_eq!(clearest([&nothing, &answers, &answers].into_iter()), Some(1));
    assert_eq!(clearest([&nothing, &nothing].into_iter()), Some(0));
}

#[test]
fn it_never_stays_open_longer_than_five_minutes() {
    let (breakers, there, mut now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    tripped(&breakers, &there, now);
    for _ in 0..10 {
        let Gate::Open(until) = breakers.gate(SubscriptionId(1), &there, now) else { panic!("open") };
        assert!(until - now <= OPEN_AT_MOST);
        now = until;
        breakers.begin_probe(SubscriptionId(1), &there, now);
        recorded(&breakers, &there, &FAILED, now);
    }
}

#[test]
fn an_answer_about_one_event_does_not_open_it() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    for _ in 0..100 {
        recorded(&breakers, &there, &Outcome::Retry { reason: Reason::ClientError, after: None }, now);
    }
    assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Closed);
}

#[test]
fn failed_answers_to_one_subscription_do_not_stop_another_at_the_same_host() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    tripped(&breakers, &there, now);
    assert!(matches!(breakers.gate(SubscriptionId(1), &there, now), Gate::Open(_)));
    assert_eq!(breakers.gate(SubscriptionId(2), &there, now), Gate::Closed);
}

#[test]
fn a_host_that_cannot_be_reached_stops_all_its_subscriptions_and_one_probe_frees_them() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let unreachable = Outcome::Retry { reason: Reason::ConnectFailed, after: None };
    for subscription in 0..i64::from(IN_A_ROW) {
        breakers.record(SubscriptionId(subscription), &there, &unreachable, now);
    }
    assert!(matches!(breakers.gate(SubscriptionId(99), &there, now), Gate::Open(_)));
    let later = now + OPEN_FOR;
    assert_eq!(breakers.gate(SubscriptionId(99), &there, later), Gate::Probe);
    breakers.begin_probe(SubscriptionId(99), &there, later);
    assert!(matches!(breakers.gate(SubscriptionId(1), &there, later), Gate::Open(_)), "only one");
    assert_eq!(
        breakers.record(SubscriptionId(99), &there, &Outcome::Delivered, later),
        [(About::Host(there.clone()), Change::Closed)]
    );
    assert_eq!(breakers.gate(SubscriptionId(1), &there, later), Gate::Closed);
}

#[test]
fn a_probe_is_left_to_another_relay_twice_and_then_made() {
    let (breakers, there, mut now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let about = About::Subscription(SubscriptionId(1));
    tripped(&breakers, &there, now);
    let mut length = OPEN_FOR;
    for _ in 0..LEFT_TO_OTHERS {
        now += length;
        assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Probe);
        assert!(!breakers.hear(&about, News::Probing, now));
        assert!(matches!(breakers.gate(SubscriptionId(1), &there, now), Gate::Open(_)), "another probes");
        assert_eq!(recorded(&breakers, &there, &FAILED, now), Change::None, "it was in flight");
        assert!(!breakers.hear(&about, News::Failed, now));
        length *= 2;
        assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Open(now + length));
    }
    now += length;
    breakers.hear(&about, News::Probing, now);
    assert_eq!(
        breakers.gate(SubscriptionId(1), &there, now),
        Gate::Probe,
        "the other's network may be broken"
    );
}

fn recorded_probe(breakers: &Breakers, there: &Arc<str>, now: Instant) -> Change {
    breakers.begin_probe(SubscriptionId(1), there, now);
    recorded(breakers, there, &FAILED, now)
}

#[test]
fn what_works_for_another_relay_is_probed_at_once_and_not_believed() {
    let (breakers, there, now) = (Breakers::default(), Arc::from("https://a"), Instant::now());
    let about = About::Subscription(SubscriptionId(1));
    assert!(!breakers.hear(&about, News::Works, now), "it is closed");
    tripped(&breakers, &there, now);
    assert_eq!(recorded_probe(&breakers, &there, now + OPEN_FOR), Change::Opened(OPEN_FOR * 2));
    assert!(breakers.hear(&about, News::Works, now + OPEN_FOR));
    let soon = now + OPEN_FOR * 2;
    assert_eq!(breakers.gate(SubscriptionId(1), &there, now + OPEN_FOR), Gate::Open(soon), "a flood of news");
    let now = soon;
    assert!(breakers.hear(&about, News::Works, now));
    assert_eq!(breakers.gate(SubscriptionId(1), &there, now), Gate::Probe);
    assert_eq!(breakers.begin_probe(SubscriptionId(1), &there, now), std::slice::from_ref(&about));
    assert!(!breakers.hear(&about, News::Works, now), "this relay's own probe decides");
    assert_eq!(recorded(&breakers, &there, &FAILED, now), Change::Opened(OPEN_FOR * 4));
}
