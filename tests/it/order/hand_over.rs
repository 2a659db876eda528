//! A relay that delivers an ordered subscription knows of all that waits for it. Polls are slow here, so that
//! what only a poll finds is noticed.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pgoutbox::relay::Settings;

use super::{ByKey, Log, publish};
use crate::support::{Database, Recorder, RelayBox, relay::settings};

const SUBSCRIBE: &str = "select outbox.subscribe('ordered', array['**'], 'by_key', ordering => 'key')";

fn seldom(name: &str) -> Settings {
    Settings { poll: Some(Duration::from_secs(300)), ..settings(name) }
}

/// Moves the cursor behind all events. Nobody has subscribed yet.
async fn pass_all(database: &Database) {
    let mut routing = RelayBox::start(database, &Recorder::new()).await;
    routing.wait_asleep().await;
    assert!(routing.stop().await.complete);
}

/// So many ordered subscriptions to everything.
async fn subscribe_many(database: &Database, count: usize, more: &str) {
    database
        .execute(format!(
            "select outbox.subscribe('ordered-' || n, array['**'], 'by_key', ordering => 'key'{more}) \
               from generate_series(1, {count}) as n"
        ))
        .await;
}

/// Publishes so many events of seven keys.
async fn publish_many(database: &Database, count: usize) {
    database
        .execute(format!(
            "select outbox.publish('order.test', '{{}}', key => 'key ' || n % 7) \
               from generate_series(1, {count}) as n"
        ))
        .await;
}

async fn start(database: &Database, name: &str, sink: &ByKey) -> RelayBox {
    RelayBox::start_with(database, |builder| builder.settings(seldom(name)).sink(sink.clone())).await
}

#[tokio::test]
async fn a_backlog_that_suspects_divide_is_delivered_without_a_poll() {
    let database = Database::new().await;
    publish(&database, &["a", "b", "a", "c", "a", "b", "c", "a", "b", "a", "c", "a"]).await;
    pass_all(&database).await;
    database.execute(SUBSCRIBE).await;
    database
        .execute(
            "insert into outbox.backlog
                    (subscription_id, positions, created_from, created_until, deaths, is_ordered)
             select 1, int8multirange(int8range(min(position), max(position), '[]')), min(created_at),
                    max(created_at), part % 3, true
               from (select position, created_at, ntile(6) over (order by position) as part
                       from outbox.events) as event
              group by part",
        )
        .await;
    let log = Log::default();
    let sink = log.sink(|_| true);
    let relay = start(&database, "relay", &sink).await;
    log.wait_for(12).await;
    log.check(&database).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_relay_takes_over_from_a_dead_one_is_delivered_without_a_poll() {
    let database = Database::new().await;
    database.execute(SUBSCRIBE).await;
    let log = Log::default();
    let hangs = log.sink(|_| true).taking(Duration::from_secs(60));
    let lease = Duration::from_secs(2);
    let dying = Settings { lease, ..seldom("dying") };
    let dying = RelayBox::start_with(&database, |builder| builder.settings(dying).sink(hangs.clone())).await;
    publish(&database, &["a", "b", "a", "c", "a", "b"]).await;
    database.eventually("select exists (select from outbox.pages)").await;
    let next = log.sink(|_| true);
    let next = RelayBox::start_with(&database, |builder| {
        builder.settings(Settings { lease, ..seldom("next") }).sink(next.clone())
    })
    .await;
    dying.abort().await;
    // It can send to nobody, but takes over what the dead relay held.
    let third = Settings { lease, poll: Some(Duration::from_millis(200)), ..settings("third") };
    let third =
        RelayBox::start_with(&database, |builder| builder.settings(third).sink(Recorder::new())).await;
    log.wait_for(6).await;
    log.check(&database).await;
    for relay in [next, third] {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_events_that_another_relay_reads_are_delivered_without_a_poll() {
    const SUBSCRIPTIONS: usize = 8;
    let database = Database::new().await;
    publish_many(&database, 1_200).await;
    let log = Log::default();
    let sink = log.sink(|_| true);
    let relays = [start(&database, "one", &sink).await, start(&database, "two", &sink).await];
    subscribe_many(&database, SUBSCRIPTIONS, ", start => 'beginning'").await;
    log.wait_for(1_200 * SUBSCRIPTIONS).await;
    log.check(&database).await;
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_relay_replays_is_delivered_without_a_poll() {
    const SUBSCRIPTIONS: usize = 8;
    let database = Database::new().await;
    subscribe_many(&database, SUBSCRIPTIONS, "").await;
    let log = Log::default();
    let sink = log.sink(|_| true);
    let relays = [start(&database, "one", &sink).await, start(&database, "two", &sink).await];
    publish_many(&database, 300).await;
    log.wait_for(300 * SUBSCRIPTIONS).await;
    database.execute("select outbox.replay(name, '-infinity', 'infinity') from outbox.subscriptions").await;
    database
        .eventually(
            "select not exists (select from outbox.replays where state = 'running') \
                    and not exists (select from outbox.owed)",
        )
        .await;
    assert!(log.delivered().len() >= 2 * 300 * SUBSCRIPTIONS);
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_redriven_behind_many_of_a_blocked_one_are_delivered_without_a_poll() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('ordered', array['**'], 'by_key', ordering => 'key', \
             max_in_flight => 4, retry => '{\"max_attempts\": 1}')",
        )
        .await;
    let log = Log::default();
    let is_down = Arc::new(AtomicBool::new(true));
    let down = is_down.clone();
    let refusing = log.sink(move |_| !down.load(Ordering::Acquire));
    let relay = start(&database, "relay", &refusing).await;
    let keys: Vec<&str> = std::iter::repeat_n("blocked", 200).chain(["b", "c", "d", "e", "f"]).collect();
    publish(&database, &keys).await;
    database.eventually("select count(*) = 205 from outbox.dead_letters").await;
    assert!(relay.stop().await.complete);
    is_down.store(false, Ordering::Release);
    let gate = Arc::new(tokio::sync::RwLock::new(()));
    let closed = gate.clone().write_owned().await;
    let blocking = log.sink(|_| true).behind("blocked", gate);
    let relay = start(&database, "next", &blocking).await;
    database.execute("select outbox.redrive('ordered')").await;
    log.wait_for(5).await;
    drop(closed);
    log.wait_for(205).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspects_of_one_subscription_go_on_beside_the_backlog_of_another() {
    const EVENTS: usize = 2_000;
    let database = Database::new().await;
    database
        .execute(format!(
            "select outbox.publish('order.test', '{{}}', key => 'key ' || n % 100) \
               from generate_series(1, {EVENTS}) as n"
        ))
        .await;
    pass_all(&database).await;
    for name in ["large", "suspect"] {
        database
            .execute(format!("select outbox.subscribe('{name}', array['**'], 'by_key', ordering => 'key')"))
            .await;
    }
    database
        .execute(
            "insert into outbox.backlog
                    (subscription_id, positions, created_from, created_until, deaths, is_ordered)
             select 1, int8multirange(int8range(min(position), max(position), '[]')), min(created_at),
                    max(created_at), 0, true
               from outbox.events
             union all
             select 2, int8multirange(int8range(position, position, '[]')), created_at, created_at, 2, true
               from (select position, created_at from outbox.events order by position limit 5) as event",
        )
        .await;
    let log = Log::default();
    let sink = log.sink(|_| true).taking(Duration::from_millis(1));
    let relay = start(&database, "relay", &sink).await;
    log.wait_for(EVENTS + 5).await;
    let began: Vec<String> = log.began();
    let last = began.iter().rposition(|subscription| subscription == "suspect").unwrap();
    assert!(last > 10 && last < EVENTS * 9 / 10, "the last suspect was number {last}");
    assert!(relay.stop().await.complete);
    database.drop().await;
}
