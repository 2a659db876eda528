//! A relay finds the deliveries that wait in the database at once and not only when it polls: also those that
//! another relay wrote, that somebody had locked, and that fell due before a pause.

use std::time::{Duration, Instant};

use pgoutbox::relay::Settings;
use sqlx::Executor as _;

use crate::support::{Database, Recorder, RelayBox, pause, relay::settings};

async fn start(database: &Database, name: &str, recorder: Option<&Recorder>) -> RelayBox {
    let seldom = Settings { poll: Some(Duration::from_secs(300)), ..settings(name) };
    RelayBox::start_with(database, |builder| {
        let builder = builder.settings(seldom);
        match recorder {
            Some(recorder) => builder.sink(recorder.clone()),
            None => builder,
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_without_the_sink_routes_is_delivered_by_one_that_has_it() {
    let database = Database::new().await;
    for ordering in ["none", "key"] {
        database
            .execute(format!(
                "select outbox.subscribe('{ordering}', array['**'], 'recorder', ordering => '{ordering}')"
            ))
            .await;
    }
    let recorder = Recorder::new();
    let mut sending = start(&database, "sending", Some(&recorder)).await;
    database.execute("select outbox.publish('a.b', '1', key => 'k')").await;
    recorder.wait_for(2).await;
    sending.wait_asleep().await;
    // Nobody rings for what comes now. Only this relay looks for it.
    let polling = Settings { poll: Some(Duration::from_millis(200)), ..settings("routing") };
    let routing = RelayBox::start_with(&database, |builder| builder.settings(polling)).await;
    for number in 2..=6 {
        database.execute("set outbox.doorbell = 'off'; select outbox.publish('a.b', '1', key => 'k')").await;
        recorder.wait_for(2 * number).await;
    }
    for relay in [sending, routing] {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

/// Somebody has locked what waits in the backlog while a relay claims it.
async fn while_the_backlog_is_locked(ordering: &str) {
    let database = Database::new().await;
    database
        .execute(format!(
            "select outbox.subscribe('all', array['**'], 'recorder', ordering => '{ordering}'); \
             select outbox.pause('all')"
        ))
        .await;
    let recorder = Recorder::new();
    let mut relay = start(&database, "relay", Some(&recorder)).await;
    for _ in 0..5 {
        database.execute("select outbox.publish('a.b', '1', key => 'k')").await;
    }
    database.eventually("select exists (select from outbox.backlog)").await;
    database.eventually("select unrouted = 0 from outbox.log_status").await;
    let mut holder = database.pool.begin().await.unwrap();
    holder.execute("select from outbox.backlog for update").await.unwrap();
    database.execute("select outbox.resume('all')").await;
    relay.signals();
    relay.wait_asleep().await;
    let commits = "select xact_commit from pg_stat_database where datname = current_database()";
    let before = database.count(commits).await;
    pause(Duration::from_secs(3)).await;
    let statements = database.count(commits).await - before;
    assert!(statements < 400, "{ordering}: {statements} statements in 3 s, for what is locked");
    assert_eq!(recorder.seen().len(), 0, "{ordering}");
    holder.rollback().await.unwrap();
    recorder.wait_for(5).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_had_locked_is_delivered_afterwards_and_is_not_asked_for_all_the_time() {
    for ordering in ["none", "key"] {
        while_the_backlog_is_locked(ordering).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fell_due_long_before_a_pause_is_delivered_after_it() {
    const EVENTS: usize = 600;
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder', max_in_flight => 2)").await;
    database.execute("select outbox.pause('all')").await;
    database
        .execute(format!("select outbox.publish('a.b', '1') from generate_series(1, {EVENTS}) as n"))
        .await;
    let recorder = Recorder::new();
    let mut relay = start(&database, "relay", Some(&recorder)).await;
    database.eventually("select unrouted = 0 from outbox.log_status").await;
    // As retries that fell due while nobody could send them.
    database
        .execute(
            "with taken as (delete from outbox.backlog returning subscription_id) \
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since) \
             select 1, now() - interval '10 min', position, created_at, now() - interval '11 min' \
               from outbox.events where topic = 'a.b'",
        )
        .await;
    let began = Instant::now();
    while recorder.seen().len() < EVENTS && began.elapsed() < Duration::from_secs(20) {
        database.execute("select outbox.resume('all')").await;
        pause(Duration::from_millis(30)).await;
        database.execute("select outbox.pause('all')").await;
        pause(Duration::from_millis(10)).await;
    }
    relay.signals();
    database.execute("select outbox.resume('all')").await;
    recorder.wait_for(EVENTS).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}
