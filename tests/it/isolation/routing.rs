//! What is routed to somebody else: events that nobody wants, slow receivers, large payloads.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{Live, publish, relay, subscribe, subscribe_as};
use crate::support::{Database, Good};

/// Events that stand before a live one.
const BEFORE: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn an_event_behind_many_that_nobody_wants_arrives_within_seconds() {
    let database = Database::new().await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    live.one(&database, "alone", Duration::from_secs(3)).await;
    publish(&database, "bulk.order", BEFORE, None).await;
    live.one(&database, "behind events that nobody wants", Duration::from_secs(5)).await;
    running.abort().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn an_event_behind_many_for_a_paused_subscription_arrives_within_seconds() {
    let database = Database::new().await;
    let paused = Good::counting(Duration::ZERO).await;
    subscribe(&database, &[("paused".to_owned(), "**", paused.url.clone())]).await;
    database.execute("select outbox.pause('paused')").await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    live.one(&database, "alone", Duration::from_secs(3)).await;
    publish(&database, "bulk.order", BEFORE, None).await;
    live.one(&database, "behind events of a paused subscription", Duration::from_secs(5)).await;
    assert_eq!(paused.switch.requests(), 0);
    running.abort().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn a_receiver_that_takes_three_seconds_delays_nobody_else() {
    slow_receivers(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn five_receivers_that_take_three_seconds_delay_nobody_else() {
    slow_receivers(5).await;
}

async fn slow_receivers(count: usize) {
    let database = Database::new().await;
    let slow = Good::counting(Duration::from_secs(3)).await;
    let made: Vec<_> =
        (0..count).map(|n| (format!("slow-{n}"), "bulk.*", format!("{}{n}", slow.url))).collect();
    subscribe(&database, &made).await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    let alone = live.measure_some(&database, "alone", 100).await;
    publish(&database, "bulk.order", BEFORE, None).await;
    let first = live.one(&database, "just behind 20,000 for slow ones", Duration::from_secs(10)).await;
    let beside = live.measure(&database, "beside slow ones").await;
    // Once they have answered they are known, and may have more in flight.
    let later = live.measure(&database, "and after their first answers").await;
    eprintln!("{} requests to slow ones", slow.switch.requests());
    running.abort().await;
    assert!(first <= Duration::from_secs(3), "the first arrived after {first:?}");
    beside.are_like(&alone);
    later.are_like(&alone);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn an_event_behind_many_that_are_deferred_together_arrives_at_once() {
    let database = Database::new().await;
    let bulk = Good::counting(Duration::ZERO).await;
    subscribe(&database, &[("bulk".to_owned(), "bulk.*", bulk.url.clone())]).await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    let alone = live.measure_some(&database, "alone", 100).await;
    sqlx::query(
        "insert into outbox.events (topic, payload, deliver_after) \
         select 'bulk.order', to_jsonb(n), clock_timestamp() + interval '6 seconds' \
           from generate_series(1, $1::integer) as n",
    )
    .bind(i32::try_from(BEFORE).unwrap())
    .execute(&database.pool)
    .await
    .unwrap();
    let until_due = Instant::now() + Duration::from_secs(6);
    let first = live.one(&database, "just behind 20,000 deferred", Duration::from_secs(10)).await;
    let beside = live.measure(&database, "while they wait").await;
    tokio::time::timeout_at(until_due.into(), std::future::pending::<()>()).await.unwrap_err();
    let due = live.measure(&database, "when they are due together").await;
    eprintln!("{} of them were sent", bulk.switch.requests());
    running.abort().await;
    assert!(first <= Duration::from_secs(3), "the first arrived after {first:?}");
    beside.are_like(&alone);
    due.are_like(&alone);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn filters_on_large_payloads_delay_nobody_else() {
    let database = Database::new().await;
    let filtering = Good::counting(Duration::ZERO).await;
    sqlx::query(
        "select outbox.subscribe('filters', array['bulk.*'], 'webhook', $1, filter => 'payload.n % 2 == 0')",
    )
    .bind(json!({ "url": filtering.url }))
    .execute(&database.pool)
    .await
    .unwrap();
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    let alone = live.measure_some(&database, "alone", 100).await;
    // 183 KB each, which PostgreSQL can hardly compress.
    let insert = "insert into outbox.events (topic, payload) \
         select 'bulk.order', jsonb_build_object('n', n, 'note', \
                (select string_agg(md5(n::text || m::text), '') from generate_series(1, 5730) as m)) \
           from generate_series(1, 300) as n";
    database.execute(insert).await;
    let first = live.one(&database, "just behind 300 of 183 KB", Duration::from_secs(10)).await;
    database.execute(insert).await;
    let beside = live.measure(&database, "beside filters on large payloads").await;
    eprintln!("{} of them were sent", filtering.switch.requests());
    running.abort().await;
    assert!(first <= Duration::from_secs(3), "the first arrived after {first:?}");
    beside.are_like(&alone);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn a_paused_week_costs_the_others_nothing_when_it_ends() {
    let database = Database::new().await;
    let paused = Good::counting(Duration::from_millis(20)).await;
    subscribe_as(&database, "paused", "bulk.*", json!({ "url": paused.url }), None).await;
    database.execute("select outbox.pause('paused')").await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    let alone = live.measure_some(&database, "alone", 100).await;
    publish(&database, "bulk.order", BEFORE, None).await;
    live.one(&database, "behind what it is owed", Duration::from_secs(10)).await;
    database.execute("select outbox.resume('paused')").await;
    let beside = live.measure(&database, "beside its backlog").await;
    eprintln!("{} of the backlog were sent", paused.switch.requests());
    running.abort().await;
    beside.are_like(&alone);
    database.drop().await;
}
