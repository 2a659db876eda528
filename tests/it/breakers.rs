//! Breakers of webhooks in running relays: what they let through, and what relays tell each other.

use std::time::Duration;

use pgoutbox::relay::telemetry::Signal;
use serde_json::json;

use crate::{
    support::{Database, Good},
    webhook_relay::{publish, relay_settings, start, subscribe},
};

fn is_breaker(wanted: bool) -> impl Fn(&Signal) -> bool {
    move |signal| matches!(signal, Signal::Breaker { open, .. } if *open == wanted)
}

#[tokio::test]
async fn an_open_breaker_claims_nothing_and_lets_one_probe_through() {
    let database = Database::new().await;
    let good = Good::start().await;
    subscribe(
        &database,
        "shop",
        "**",
        json!({"url": good.url}),
        json!({"schedule": vec!["0s"; 100], "jitter": 0}),
    )
    .await;
    good.switch.set_down(true);
    let mut relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 40).await;
    relay.wait(is_breaker(true)).await;
    database.eventually("select count(*) filter (where lease_token is not null) = 0 from outbox.owed").await;
    let (requests, attempts) =
        (good.switch.requests(), database.count("select sum(attempt) from outbox.owed").await);
    assert!((20..=28).contains(&requests), "20 failures open it, 8 permits may be in flight: {requests}");
    // More events come while it is open.
    publish(&database, "a.b", 10).await;
    relay.wait(is_breaker(true)).await;
    assert_eq!(good.switch.requests(), requests + 1, "one probe");
    database
        .eventually(
            "select count(*) = 50 \
             and count(*) filter (where lease_token is not null) = 0 from outbox.owed",
        )
        .await;
    assert_eq!(
        database.count("select sum(attempt) from outbox.owed").await,
        attempts + 1,
        "an outage costs no attempts"
    );
    good.switch.set_down(false);
    relay.wait(is_breaker(false)).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(good.switch.requests(), requests + 1 + 50);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn relays_share_the_probes_of_a_breaker_and_each_sends_again_when_it_has_something_to_send() {
    let database = Database::new().await;
    let good = Good::start().await;
    let retry = json!({"schedule": vec!["0s"; 100], "jitter": 0});
    subscribe(&database, "shop", "**", json!({"url": good.url}), retry).await;
    good.switch.set_down(true);
    let mut relays = Vec::new();
    for name in ["one", "two", "three", "four"] {
        let mut relay = start(&database, relay_settings(name)).await;
        // Each must see it fail itself.
        publish(&database, "a.b", 40).await;
        relay.wait(is_breaker(true)).await;
        relays.push(relay);
    }
    database.eventually("select count(*) filter (where lease_token is not null) = 0 from outbox.owed").await;
    let before = good.switch.requests();
    let failing_twice = relays.iter_mut().map(|relay| {
        Box::pin(async {
            relay.wait(is_breaker(true)).await;
            relay.wait(is_breaker(true)).await;
        })
    });
    futures_util::future::select_all(failing_twice).await;
    let probes = good.switch.requests() - before;
    assert!(probes <= 4, "{probes} probes of four relays while one of them made two");
    good.switch.set_down(false);
    // The first may send all there is. When it stops, the others send what comes.
    while !relays.is_empty() {
        let closing = relays.iter_mut().map(|relay| Box::pin(relay.wait(is_breaker(false))));
        let (_, first, _) = futures_util::future::select_all(closing).await;
        database.eventually("select not exists (select from outbox.owed)").await;
        relays.swap_remove(first).stop().await;
        publish(&database, "a.b", 40).await;
    }
    database.drop().await;
}

/// The breaker is open for 8 seconds by then.
#[tokio::test]
async fn a_dead_letter_is_redriven_through_an_open_breaker_as_its_probe() {
    let database = Database::new().await;
    let mut good = Good::start().await;
    subscribe(&database, "shop", "**", json!({"url": good.url}), json!({"max_attempts": 1})).await;
    good.switch.set_down(true);
    let mut relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 40).await;
    for _ in 0..3 {
        relay.wait(is_breaker(true)).await;
    }
    database.eventually("select not exists (select from outbox.owed where lease_token is not null)").await;
    let oldest: uuid::Uuid =
        sqlx::query_scalar("select event_id from outbox.dead_letters order by position limit 1")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    good.switch.set_down(false);
    let asked = std::time::Instant::now();
    assert_eq!(database.count("select outbox.redrive('shop', max_rows => 1)").await, 1);
    let first = good.take(1).await;
    assert!(asked.elapsed() < Duration::from_secs(4), "it took {:?}", asked.elapsed());
    assert_eq!(first[0].id, Some(oldest.to_string()), "the redriven event is the probe");
    relay.wait(is_breaker(false)).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    relay.stop().await;
    database.drop().await;
}
