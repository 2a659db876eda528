//! Tests of the ledger checker: a history with exactly one defect gives exactly that finding.

use std::{collections::BTreeSet, time::Instant};

use uuid::Uuid;

use crate::support::ledger::{
    Afterwards, Ended, Fault, Findings, Journal, Request, Transaction, Wish, Written,
};

fn event(number: u128, topic: &str, organization: Option<&str>) -> Written {
    Written {
        id: Uuid::from_u128(number),
        topic: topic.to_owned(),
        organization: organization.map(str::to_owned),
        payload: format!("{{\"n\": {number}}}"),
    }
}

fn request(event: &Written, subscription: &str) -> Request {
    Request {
        event: event.id,
        subscription: subscription.to_owned(),
        payload: event.payload.clone(),
        arrived: Instant::now(),
        took_effect: true,
    }
}

/// Two committed events, one aborted, one of another tenant; each sent to the matching subscriptions.
fn healthy() -> (Journal, Afterwards) {
    let began = Instant::now();
    let wish = |name: &str, topic: &str, organization: Option<&str>| Wish {
        name: name.to_owned(),
        topics: vec![topic.to_owned()],
        organization: organization.map(str::to_owned),
        since: began,
    };
    let transaction = |seed, event: &Written, ended| Transaction {
        seed,
        events: vec![event.clone()],
        synchronous: true,
        committing: Instant::now(),
        ended,
    };
    let (first, second) = (event(1, "shop.orders.create", None), event(2, "shop.users.create", Some("acme")));
    let aborted = event(3, "shop.orders.create", None);
    let journal = Journal {
        wishes: vec![
            wish("all", "**", None),
            wish("orders", "shop.ord*.*", None),
            wish("acme", "shop.**", Some("acme")),
        ],
        transactions: vec![
            transaction(1, &first, Ended::Committed),
            transaction(2, &second, Ended::Unknown),
            transaction(3, &aborted, Ended::Aborted),
        ],
        requests: vec![
            request(&first, "all"),
            request(&first, "orders"),
            request(&second, "all"),
            request(&second, "acme"),
        ],
        faults: vec![],
    };
    let log = [first, second].map(|event| (event.id, event)).into();
    (journal, Afterwards { log, ..Afterwards::default() })
}

/// Asserts exactly this finding.
fn only(term: &str, spoil: impl FnOnce(&mut Journal, &mut Afterwards)) -> Findings {
    let (mut journal, mut after) = healthy();
    spoil(&mut journal, &mut after);
    let findings = journal.check(&after);
    assert_eq!(findings.violated(), [term], "{findings:?}");
    findings
}

#[test]
fn a_healthy_history_has_no_findings() {
    let (journal, after) = healthy();
    let findings = journal.check(&after);
    assert!(findings.violated().is_empty(), "{findings:?}");
    assert_eq!((findings.owed, findings.durable, findings.duplicates()), (4, 2, 0));
}

#[test]
fn a_delivery_that_was_never_sent_is_lost() {
    let findings = only("lost", |journal, _| _ = journal.requests.pop());
    assert_eq!(findings.lost, BTreeSet::from([(Uuid::from_u128(2), "acme".to_owned())]));
    only("lost", |journal, _| journal.requests[1].took_effect = false);
}

#[test]
fn a_delivery_that_was_given_up_or_never_became_durable_is_not_lost() {
    let (mut journal, mut after) = healthy();
    journal.requests.pop();
    after.dead_letters.insert((Uuid::from_u128(2), "acme".to_owned()));
    assert!(journal.check(&after).violated().is_empty());
    let (mut journal, mut after) = healthy();
    journal.requests.truncate(2);
    after.log.remove(&Uuid::from_u128(2)); // its COMMIT had no answer and failed
    assert!(journal.check(&after).violated().is_empty());
}

#[test]
fn a_delivery_of_an_event_older_than_its_subscription_is_optional() {
    let (mut journal, after) = healthy();
    journal.requests.retain(|request| request.subscription != "orders");
    journal.wishes[1].since = Instant::now();
    assert!(journal.check(&after).violated().is_empty());
    let (mut journal, after) = healthy();
    journal.wishes[1].since = Instant::now();
    assert!(journal.check(&after).violated().is_empty());
}

#[test]
fn a_request_for_an_event_not_in_the_log_is_a_phantom() {
    only("phantom", |journal, _| {
        journal.requests.push(request(&event(3, "shop.orders.create", None), "all"))
    });
    only("phantom", |journal, _| journal.requests.push(request(&event(9, "nobody.wrote.this", None), "all")));
}

#[test]
fn a_request_to_a_subscription_that_does_not_want_it_is_a_phantom() {
    only("phantom", |journal, _| {
        journal.requests.push(request(&event(2, "shop.users.create", Some("acme")), "orders"))
    });
    only("phantom", |journal, _| {
        journal.requests.push(request(&event(1, "shop.orders.create", None), "acme"))
    });
}

#[test]
fn a_request_with_another_body_is_a_phantom() {
    only("phantom", |journal, _| journal.requests[0].payload = "{\"n\": 2}".to_owned());
}

#[test]
fn a_second_effect_is_a_duplicate_unless_a_fault_explains_it() {
    let again = |journal: &mut Journal| {
        let copy = journal.requests[0].clone();
        journal.requests.push(copy);
    };
    let findings = only("duplicated", |journal, _| again(journal));
    assert_eq!((findings.duplicates(), findings.duplicates_allowed), (1, 0));
    only("duplicated", |journal, _| {
        journal.faults.push(Fault { kind: "kill", permits: 1 });
        again(journal);
        again(journal);
    });
    let (mut journal, after) = healthy();
    journal.faults.push(Fault { kind: "kill", permits: 1 });
    again(&mut journal);
    assert!(journal.check(&after).violated().is_empty());
    // An attempt without effect is not a duplicate.
    let (mut journal, after) = healthy();
    again(&mut journal);
    journal.requests[0].took_effect = false;
    assert!(journal.check(&after).violated().is_empty());
}

#[test]
fn a_delivery_that_is_still_pending_is_stuck() {
    only("stuck", |journal, after| {
        journal.requests.pop();
        after.outstanding.insert((Uuid::from_u128(2), "acme".to_owned()));
    });
}

#[test]
fn events_that_the_database_lost_or_invented_are_a_separate_finding() {
    only("database", |journal, after| {
        after.log.remove(&Uuid::from_u128(1));
        journal.requests.retain(|request| request.event != Uuid::from_u128(1));
    });
    only("database", |_, after| {
        let aborted = event(3, "shop.orders.create", None);
        after.log.insert(aborted.id, aborted);
    });
    // A crash may lose an asynchronous commit.
    let (mut journal, mut after) = healthy();
    journal.transactions[0].synchronous = false;
    after.log.remove(&Uuid::from_u128(1));
    journal.requests.retain(|request| request.event != Uuid::from_u128(1));
    let findings = journal.check(&after);
    assert!(findings.violated().is_empty() && findings.forgotten == 1, "{findings:?}");
}
