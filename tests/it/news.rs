//! Who serves live clients learns of new events at once, also while a relay is awake and publishers do not
//! notify.

use std::time::{Duration, Instant};

use pgoutbox::Relay;
use serde_json::Value;
use sqlx::postgres::PgListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    channels::store,
    support::{Database, Recorder, RelayBox, pause, relay::settings},
};

const CHANNEL: &str = "outbox_news";

async fn listen(database: &Database) -> PgListener {
    let mut listener = PgListener::connect_with(&database.pool).await.unwrap();
    listener.listen(CHANNEL).await.unwrap();
    listener
}

/// Payload of the next notification, which must come in time.
async fn next(listener: &mut PgListener, within: Duration) -> String {
    match tokio::time::timeout(within, listener.recv()).await {
        Ok(news) => news.unwrap().payload().to_owned(),
        Err(_) => panic!("no news within {within:?}"),
    }
}

async fn publish(database: &Database) {
    database.execute("insert into outbox.events (topic, payload) values ('shop.a', '1')").await;
}

async fn relay_with_recorder(database: &Database) -> (RelayBox, Recorder) {
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let recorder = Recorder::new();
    (RelayBox::start(database, &recorder).await, recorder)
}

/// Each event is followed by news: who looks only after them finds every one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_is_told_after_each_event_whether_the_relay_sleeps_or_not() {
    let database = Database::new().await;
    let store = store(&database).await;
    store.report_gateway("gateway", 3).await.unwrap();
    let mut listener = listen(&database).await;
    let (relay, _) = relay_with_recorder(&database).await;
    for round in 1..=300 {
        publish(&database).await;
        let deadline = Instant::now() + Duration::from_secs(5);
        // What is seen after a notification may be there already when an earlier one comes.
        loop {
            next(&mut listener, deadline.saturating_duration_since(Instant::now())).await;
            if database.count("select count(*) from outbox.events").await == round {
                break;
            }
        }
        // Notifications of this event are still under way, or not; then the relay sleeps, or not.
        pause(Duration::from_millis([0, 1, 3, 6, 20][round as usize % 5])).await;
        let still_there = async { while listener.recv().await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_millis(round as u64 % 3 * 6), still_there).await;
    }
    assert!(relay.stop().await.complete);
    store.close().await;
    drop(listener);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_events_are_told_of_every_five_milliseconds_at_most_and_the_last_ones_too() {
    let database = Database::new().await;
    let store = store(&database).await;
    store.report_gateway("gateway", 0).await.unwrap();
    let mut listener = listen(&database).await;
    let (relay, recorder) = relay_with_recorder(&database).await;
    let began = Instant::now();
    let mut writers = JoinSet::new();
    for _ in 0..4 {
        let pool = database.pool.clone();
        writers.spawn(async move {
            for _ in 0..250 {
                let insert = "insert into outbox.events (topic, payload) values ('shop.a', '1')";
                sqlx::query(insert).execute(&pool).await.unwrap();
            }
        });
    }
    let (mut told, mut seen) = (0, 0);
    while seen < 1_000 {
        next(&mut listener, Duration::from_secs(10)).await;
        told += 1;
        seen = database.count("select count(*) from outbox.events").await;
    }
    writers.join_all().await;
    recorder.wait_for(1_000).await;
    // Those that came meanwhile.
    database.execute("select pg_notify('outbox_news', 'marker')").await;
    while next(&mut listener, Duration::from_secs(10)).await.is_empty() {
        told += 1;
    }
    let most = began.elapsed().as_millis() / 5 + 2;
    assert!(told > 3 && told <= most, "{told} notifications, at most {most} were allowed");
    assert!(relay.stop().await.complete);
    store.close().await;
    drop(listener);
    database.drop().await;
}

#[tokio::test]
async fn nobody_is_told_where_no_gateway_listens() {
    let database = Database::new().await;
    let store = store(&database).await;
    // One that was killed, and one in the relay's own process, which needs no database.
    store.report_gateway("killed", 1).await.unwrap();
    database.execute("update outbox.gateways set seen_at = now() - interval '16 seconds'").await;
    store.report_gateway("relay", 1).await.unwrap();
    store.report_gateway("left", 1).await.unwrap();
    store.leave_gateway("left").await.unwrap();
    let mut listener = listen(&database).await;
    let (relay, recorder) = relay_with_recorder(&database).await;
    for count in 1..=5 {
        publish(&database).await;
        recorder.wait_for(count).await;
    }
    assert!(relay.stop().await.complete);
    database.execute("select pg_notify('outbox_news', 'marker')").await;
    assert_eq!(next(&mut listener, Duration::from_secs(10)).await, "marker");
    store.close().await;
    drop(listener);
    database.drop().await;
}

#[tokio::test]
async fn a_new_gateway_is_told_before_the_next_report_of_a_relay() {
    let database = Database::new().await;
    let store = store(&database).await;
    let (mut relay, recorder) = relay_with_recorder(&database).await;
    relay.wait_asleep().await;
    database.eventually("select count(*) = 1 from outbox.relays").await;
    publish(&database).await;
    recorder.wait_for(1).await;
    let mut listener = listen(&database).await;
    let began = Instant::now();
    store.report_gateway("gateway", 1).await.unwrap();
    next(&mut listener, Duration::from_secs(5)).await; // of what was read before
    publish(&database).await;
    next(&mut listener, Duration::from_secs(5)).await;
    assert!(began.elapsed() < Duration::from_secs(8), "the next report is after 10 s");
    // A report that is repeated wakes nobody.
    let mut doorbell = PgListener::connect_with(&database.pool).await.unwrap();
    doorbell.listen("outbox_doorbell").await.unwrap();
    store.report_gateway("gateway", 2).await.unwrap();
    database.execute("select pg_notify('outbox_doorbell', 'marker')").await;
    assert_eq!(next(&mut doorbell, Duration::from_secs(5)).await, "marker");
    assert!(relay.stop().await.complete);
    store.close().await;
    drop((listener, doorbell));
    database.drop().await;
}

#[tokio::test]
async fn the_process_of_a_relay_hears_of_what_it_reads_and_of_what_others_read() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('board', array['**'], 'live')").await;
    let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
    let relay = Relay::builder(pool).settings(settings("relay")).build().await.unwrap();
    let mut news = relay.news();
    let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
    running.spawn(relay.run(stop.clone()));
    let within = async |news: &mut tokio::sync::watch::Receiver<u64>, what: &str| {
        let changed = tokio::time::timeout(Duration::from_secs(10), news.changed()).await;
        changed.unwrap_or_else(|_| panic!("no news of {what}")).unwrap();
    };
    // Once it holds the bell, it listens.
    let sleeps = "select exists (select from pg_locks
                   where locktype = 'advisory' and mode = 'ExclusiveLock' and objid = 7411001
                     and database = (select oid from pg_database where datname = current_database()))";
    database.eventually(sleeps).await;
    publish(&database).await;
    within(&mut news, "its own events").await;
    database.eventually("select bool_and(status = 'completed') from outbox.event_status").await;
    database.eventually(sleeps).await;
    news.borrow_and_update();
    database.execute("select pg_notify('outbox_news', '')").await;
    within(&mut news, "what another relay reads").await;
    stop.cancel();
    assert!(running.join_next().await.unwrap().unwrap().unwrap().complete);
    database.drop().await;
}

#[tokio::test]
async fn the_status_shows_gateways_that_report() {
    let database = Database::new().await;
    let store = store(&database).await;
    store.report_gateway("gone", 1).await.unwrap();
    database.execute("update outbox.gateways set seen_at = now() - interval '2 minutes'").await;
    store.report_gateway("edge-1", 1).await.unwrap();
    let started = "select extract(epoch from started_at)::bigint from outbox.gateways where name = 'edge-1'";
    database.execute("update outbox.gateways set started_at = now() - interval '1 hour'").await;
    let first = database.count(started).await;
    store.report_gateway("edge-1", 7).await.unwrap();
    assert_eq!(database.count(started).await, first, "it runs since then");
    let output = database.pgoutbox(&["status"]);
    let said = String::from_utf8(output.stderr).unwrap();
    let line = format!("gateway edge-1: version {}, 7 client connections", env!("CARGO_PKG_VERSION"));
    assert!(said.lines().any(|one| one == line) && !said.contains("gone"), "{said}");
    let output = database.pgoutbox(&["status", "--json"]);
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&shown["gateway"], &shown["connections"]), (&"edge-1".into(), &7.into()), "{shown}");
    // It was away: it starts anew.
    database.execute("update outbox.gateways set seen_at = now() - interval '16 seconds'").await;
    store.report_gateway("edge-1", 0).await.unwrap();
    assert!(database.count(started).await > first);
    store.close().await;
    database.drop().await;
}
