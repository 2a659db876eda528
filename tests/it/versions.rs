//! An answer binds the version of the subscription that it was sent for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::telemetry::Signal,
};

use crate::support::{Database, Recorder, RelayBox};

/// Sends one event, changes the destination while the attempt is in flight, and only then gives this answer.
async fn answered_after_a_change(answer: Outcome, waits_for_reload: bool) {
    let database = Database::new().await;
    let subscribe = |version: u32| {
        format!("select outbox.subscribe('shop', array['**'], 'recorder', '{{\"version\": {version}}}')")
    };
    database.execute(subscribe(1)).await;
    let first = AtomicBool::new(true);
    let recorder = Recorder::answering(move |_| {
        let is_first = first.swap(false, Ordering::AcqRel);
        if is_first { answer.clone() } else { Outcome::Delivered }
    });
    let mut relay = RelayBox::start(&database, &recorder).await;
    let closed = recorder.gate.clone().write_owned().await;
    database.execute("select outbox.publish('a.b', '1')").await;
    recorder.wait_for(1).await;
    database.execute(subscribe(2)).await;
    if waits_for_reload {
        database.execute("select outbox.publish('a.b', '2')").await; // the relay routes it, and so reloads
        relay.wait(|signal| matches!(signal, Signal::Reloaded { .. })).await;
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
            .count("select count(*) from outbox.subscriptions where state = 'ok' and paused_until is null")
            .await,
        1,
        "the new destination has said nothing"
    );
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_destination_that_is_gone_does_not_stop_the_one_that_replaced_it() {
    for waits_for_reload in [true, false] {
        answered_after_a_change(Outcome::Gone, waits_for_reload).await;
    }
}

#[tokio::test]
async fn a_pause_that_a_destination_asked_for_does_not_bind_the_one_that_replaced_it() {
    for waits_for_reload in [true, false] {
        let after = Some(Duration::from_secs(3_600));
        answered_after_a_change(Outcome::Retry { reason: Reason::RateLimited, after }, waits_for_reload)
            .await;
    }
}
