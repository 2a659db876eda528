//! A relay finds the deliveries that wait in the database at once and not only when it polls: also those that
//! another relay wrote, that somebody had locked, that fell due before a pause, and that a dead relay had
//! leased.

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
    assert!(statements < 330, "{ordering}: {statements} statements in 3 s, for what is locked");
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

/// Starts a relay that looks often, and publishes until it has leased something. Nobody rings. Returns how
/// many events were published.
async fn leasing(database: &Database, lease: u64, recorder: &Recorder) -> (RelayBox, usize) {
    let (poll, lease) = (Some(Duration::from_millis(200)), Duration::from_secs(lease));
    let dying = Settings { poll, lease, ..settings("dying") };
    let relay =
        RelayBox::start_with(database, |builder| builder.settings(dying).sink(recorder.clone())).await;
    for number in 1..=20 {
        database.execute("set outbox.doorbell = 'off'; select outbox.publish('a.b', '1')").await;
        recorder.wait_for(number).await;
        if database.count("select count(*) from outbox.pages where relay = 'dying'").await > 0 {
            return (relay, number);
        }
    }
    panic!("the other relay leased each of them");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_leased_when_a_relay_starts_is_sent_again_when_that_lease_ends() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let closed = recorder.gate.write().await;
    // Longer than the lease of the other.
    let (dying, events) = leasing(&database, 13, &recorder).await;
    dying.abort().await;
    drop(closed);
    let left = start(&database, "left", Some(&recorder)).await;
    recorder.wait_for(events + 1).await;
    assert!(left.stop().await.complete);
    database.drop().await;
}

/// A relay that never polls beside one that has died and had leased something, and how many events were
/// published, of which each was sent once.
async fn beside_a_dead_one(database: &Database, lease: u64, recorder: &Recorder) -> (RelayBox, usize) {
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let _closed = recorder.gate.write().await;
    let mut left = start(database, "left", Some(recorder)).await;
    left.wait_asleep().await;
    let (dying, events) = leasing(database, lease, recorder).await;
    dying.abort().await;
    (left, events)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_that_ended_had_leased_is_sent_again_by_one_that_never_polls() {
    let (database, recorder) = (Database::new().await, Recorder::new());
    let (left, events) = beside_a_dead_one(&database, 10, &recorder).await;
    // Another relay counts as ended after 30 s, and that is looked for every 10 s.
    let settled = "select not exists (select from outbox.owed)";
    database.eventually_within(Duration::from_secs(60), settled).await;
    assert_eq!(recorder.seen().len(), events + 1);
    assert!(left.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_relay_without_the_sink_takes_over_is_delivered_by_one_that_has_it() {
    let (database, recorder) = (Database::new().await, Recorder::new());
    let (left, events) = beside_a_dead_one(&database, 3, &recorder).await;
    // It does not notice that the other has ended.
    database.execute("update outbox.relays set seen_at = now() + '1 hour' where name = 'dying'").await;
    let polling = Settings { poll: Some(Duration::from_millis(200)), ..settings("taking") };
    let taking = RelayBox::start_with(&database, |builder| builder.settings(polling)).await;
    recorder.wait_for(events + 1).await;
    for relay in [left, taking] {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_that_were_leased_when_a_relay_starts_are_sent_again_although_their_leases_end_apart() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    database.execute("select outbox.publish('a.b', '1') from generate_series(1, 2) as n").await;
    // Everything is routed: a relay that died had leased two retries.
    database.execute("update outbox.cursor set step = step + 1, settled = pg_current_snapshot()").await;
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at, lease_token, attempt)
             select 1, now() + row_number() over (order by position) * interval '4 seconds', position, created_at,
                    gen_random_uuid(), 1
               from outbox.events where topic = 'a.b'",
        )
        .await;
    let recorder = Recorder::new();
    let left = start(&database, "left", Some(&recorder)).await;
    recorder.wait_for(2).await;
    assert!(left.stop().await.complete);
    database.drop().await;
}

/// A snapshot that is held keeps the rows of all pages, which are below those that are there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn looks_for_dead_relays_do_not_read_what_is_left_of_pages_that_are_gone() {
    const GONE: i64 = 30_000;
    let database = Database::new().await;
    let mut holder = database.pool.begin().await.unwrap();
    holder
        .execute("set transaction isolation level repeatable read; select pg_current_xact_id()")
        .await
        .unwrap();
    let pages = |lease: &str, count: i64| {
        format!(
            "insert into outbox.pages (lease_token, due_at, relay, created_from, created_until, subscriptions,
                                       owed, owed_since)
             select gen_random_uuid(), now() + interval '{lease}', 'other', now(), now(), '{{1}}',
                    array['{{[1,2)}}'::int8multirange], array[now()]
               from generate_series(1, {count}) as n"
        )
    };
    database.execute(pages("0 s", GONE)).await;
    database.execute("delete from outbox.pages").await;
    database.execute(pages("1 hour", 1)).await;
    let often = Settings { poll: Some(Duration::from_millis(100)), ..settings("relay") };
    let relay = RelayBox::start_with(&database, |builder| builder.settings(often)).await;
    let read = || async {
        let sql = "select idx_scan, idx_tup_read from pg_stat_user_indexes where indexrelname = 'pages_pkey'";
        sqlx::query_as::<_, (i64, i64)>(sql).fetch_one(&database.pool).await.unwrap()
    };
    let scans = |least: i64| {
        format!("select idx_scan >= {least} from pg_stat_user_indexes where indexrelname = 'pages_pkey'")
    };
    // The first look is at everything.
    database.eventually(&scans(10)).await;
    let before = read().await;
    database.eventually(&scans(before.0 + 10)).await;
    let after = read().await;
    let each = (after.1 - before.1) / (after.0 - before.0);
    assert!(each < GONE / 10, "{each} entries in each look, of {GONE} that are gone");
    holder.rollback().await.unwrap();
    assert!(relay.stop().await.complete);
    database.drop().await;
}
