//! An answer binds the version of the subscription that it was sent for.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::telemetry::Signal,
};

use crate::support::{Database, Recorder, RelayBox, recorder::Seen};

const NEW_DESTINATION: &[&str] =
    &["select outbox.subscribe('shop', array['**'], 'recorder', '{\"version\": 2}')"];
/// Another relay has got an answer of 410, and somebody has resumed the subscription since.
const RESUMED: &[&str] = &["update outbox.subscriptions set state = 'gone'", "select outbox.resume('shop')"];
const PAUSED_AND_RESUMED: &[&str] = &["select outbox.pause('shop')", "select outbox.resume('shop')"];

/// Sends one event, makes these changes while the attempt is in flight, and only then gives this answer.
async fn answered_after(changes: &[&str], answer: Outcome, waits_for_reload: bool) {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    let first = AtomicBool::new(true);
    let recorder = Recorder::answering(move |_| {
        let is_first = first.swap(false, Ordering::AcqRel);
        if is_first { answer.clone() } else { Outcome::Delivered }
    });
    let mut relay = RelayBox::start(&database, &recorder).await;
    let closed = recorder.gate.clone().write_owned().await;
    database.execute("select outbox.publish('a.b', '1')").await;
    recorder.wait_for(1).await;
    for change in changes {
        database.execute(*change).await;
    }
    if waits_for_reload {
        database.execute("select outbox.publish('a.b', '2')").await; // the relay routes it, and so reloads
        let now = database.count("select value from outbox.generation").await;
        relay.wait(|signal| matches!(signal, Signal::Reloaded { generation } if *generation >= now)).await;
    }
    drop(closed);
    database.execute("select outbox.publish('a.next', '3')").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.next")).await;
    if waits_for_reload {
        // Otherwise the relay may have taken the answer for that of the present destination: then this one
        // event waits as long as it asked.
        database.eventually("select not exists (select from outbox.owed)").await;
    }
    assert_eq!(
        database
            .count(
                "select count(*) from outbox.subscription_status where state = 'ok' and paused_until is null"
            )
            .await,
        1,
        "nothing was said of it since"
    );
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_destination_that_is_gone_does_not_stop_the_one_that_replaced_it() {
    for waits_for_reload in [true, false] {
        answered_after(NEW_DESTINATION, Outcome::Gone, waits_for_reload).await;
    }
}

#[tokio::test]
async fn an_answer_to_what_was_sent_before_a_resume_does_not_undo_it() {
    for waits_for_reload in [true, false] {
        answered_after(RESUMED, Outcome::Gone, waits_for_reload).await;
        let after = Some(Duration::from_secs(3_600));
        let answer = Outcome::Retry { reason: Reason::RateLimited, after };
        answered_after(PAUSED_AND_RESUMED, answer, waits_for_reload).await;
    }
}

#[tokio::test]
async fn a_pause_that_a_destination_asked_for_does_not_bind_the_one_that_replaced_it() {
    for waits_for_reload in [true, false] {
        let after = Some(Duration::from_secs(3_600));
        let answer = Outcome::Retry { reason: Reason::RateLimited, after };
        answered_after(NEW_DESTINATION, answer, waits_for_reload).await;
    }
}

/// A page has begun, and most of the events are still in the log.
#[tokio::test]
async fn what_was_committed_before_the_destination_was_gone_comes_after_resume() {
    let database = Database::new().await;
    let is_gone = Arc::new(AtomicBool::new(true));
    let answer = is_gone.clone();
    let recorder = Recorder::answering(move |seen| match answer.load(Ordering::Acquire) {
        true if seen.position > 100 => Outcome::Gone,
        _ => Outcome::Delivered,
    });
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    database
        .execute(
            "insert into outbox.events (topic, payload) select 'before', '1' from generate_series(1, 4000)",
        )
        .await;
    let relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select state = 'gone' from outbox.subscriptions").await;
    database
        .execute(
            "insert into outbox.events (topic, payload) select 'meanwhile', '1' from generate_series(1, 9)",
        )
        .await;
    let is_routed = "select bool_and(pg_visible_in_snapshot(event.xid, cursor.settled)) \
                       from outbox.events as event, \
                            (select settled from outbox.cursor order by step desc limit 1) as cursor";
    database.eventually(is_routed).await;
    is_gone.store(false, Ordering::Release);
    database.execute("select outbox.resume('shop')").await;
    let delivered = |seen: &[Seen]| {
        let before = seen.iter().filter(|one| one.topic == "before");
        before.map(|one| one.event).collect::<HashSet<_>>().len()
    };
    let seen = recorder.wait_until(|seen| delivered(seen) == 4_000).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert!(seen.iter().all(|one| one.topic == "before"), "what was committed meanwhile is not owed");
    database.drop().await;
}

/// Inserts this many events of an organization.
async fn publish_for(database: &Database, organization: &str, count: u32) {
    let insert = format!(
        "insert into outbox.events (topic, payload, organization) \
              select 'a.b', '1', '{organization}' from generate_series(1, {count})"
    );
    database.execute(insert).await;
}

#[tokio::test]
async fn what_waits_is_not_sent_to_a_subscription_that_belongs_to_another_organization_by_now() {
    let database = Database::new().await;
    let subscribe = |organization: &str| {
        format!("select outbox.subscribe('shop', array['**'], 'recorder', organization => '{organization}')")
    };
    database.execute(subscribe("acme")).await;
    let rejects = Arc::new(AtomicBool::new(true));
    let answer = rejects.clone();
    let recorder = Recorder::answering(move |_| match answer.load(Ordering::Acquire) {
        true => Outcome::Rejected { reason: Reason::ClientError },
        false => Outcome::Delivered,
    });
    let relay = RelayBox::start(&database, &recorder).await;
    publish_for(&database, "acme", 2).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    database.execute("select outbox.pause('shop')").await;
    publish_for(&database, "acme", 3).await;
    database.eventually("select count(*) = 3 from outbox.owed").await;
    rejects.store(false, Ordering::Release);
    database.execute(subscribe("globex")).await;
    database.execute("select outbox.resume('shop'), outbox.redrive('shop')").await;
    publish_for(&database, "globex", 1).await;
    recorder.wait_for(3).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), 3, "two that were rejected, and the one of the new organization");
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.drop().await;
}
