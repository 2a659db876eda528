//! Relays that are killed: who waits, who is blamed, and what is sent twice.

use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

use super::{Live, publish, subscribe, subscribe_as};
use crate::support::{
    ChildRelay, Database, Good,
    hostile::{Hostile, Mode, Small},
    pause, seed,
};

/// The default lease.
const LEASE: Duration = Duration::from_secs(10);
/// How much later what was in flight is sent again (s).
const LATEST: u64 = 10;

/// Events of the requests so far.
fn events(receiver: &Hostile) -> Vec<Uuid> {
    receiver.requests().iter().map(|request| request.header("webhook-id").unwrap().parse().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn a_relay_killed_while_three_receivers_hang_is_replaced_within_seconds() {
    let database = Database::new().await;
    let mut live = Live::start(&database, "live.order").await;
    let mut hanging = Vec::new();
    for _ in 0..3 {
        hanging.push(Hostile::start(Mode::Hang).await);
    }
    let made: Vec<_> =
        hanging.iter().enumerate().map(|(n, one)| (format!("hangs-{n}"), "bulk.*", one.url("/"))).collect();
    subscribe(&database, &made).await;
    // Of this one some are in flight when the relay is killed.
    let slow = Hostile::start(Mode::Small(Small::new(1_000, Duration::from_millis(300)))).await;
    subscribe(&database, &[("slow".to_owned(), "slow.*", slow.url("/"))]).await;
    let mut killed = ChildRelay::start(&database, "killed", &[]).await;
    publish(&database, "bulk.order", 30, None).await;
    for one in &hanging {
        one.wait_until(Duration::from_secs(10), |requests| requests >= 8).await;
    }
    live.measure_some(&database, "beside three that hang", 100).await;
    publish(&database, "slow.order", 40, None).await;
    slow.wait_until(Duration::from_secs(10), |requests| requests >= 8).await;
    killed.kill().await;
    let death = Instant::now();
    let next = ChildRelay::start(&database, "next", &[]).await;
    live.one(&database, "the first event after the kill", Duration::from_secs(3)).await;
    live.measure_some(&database, "after the kill", 100).await;
    let distinct = |receiver: &Hostile| events(receiver).into_iter().collect::<HashSet<_>>().len();
    slow.wait_until((LEASE + Duration::from_secs(10)).saturating_sub(death.elapsed()), |_| {
        distinct(&slow) == 40
    })
    .await;
    eprintln!("everything of the well ones was sent {:.1?} after the kill", death.elapsed());
    drop(next);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn what_hung_when_its_relay_was_killed_is_sent_again_within_the_lease_and_ten_seconds() {
    let database = Database::new().await;
    let hanging = Hostile::start(Mode::Hang).await;
    let mut live = Live::start(&database, "live.order").await;
    subscribe(&database, &[("hangs".to_owned(), "bulk.*", hanging.url("/"))]).await;
    let mut killed = ChildRelay::start(&database, "killed", &[]).await;
    publish(&database, "bulk.order", 30, None).await;
    hanging.wait_until(Duration::from_secs(10), |requests| requests >= 8).await;
    // What has not begun is given back meanwhile.
    live.measure_some(&database, "beside one that hangs", 300).await;
    killed.kill().await;
    let death = Instant::now();
    let before: HashSet<Uuid> = events(&hanging).into_iter().collect();
    let count = hanging.requests().len();
    let next = ChildRelay::start(&database, "next", &[]).await;
    hanging
        .wait_until(LEASE + Duration::from_secs(LATEST), |requests| {
            requests >= count + before.len()
                && before.is_subset(&events(&hanging)[count..].iter().copied().collect())
        })
        .await;
    eprintln!("{} that hung were sent again {:.1?} after the kill", before.len(), death.elapsed());
    drop(next);
    database.drop().await;
}

/// 65 deliveries are leased and a few of them in flight while a relay is killed so many times.
async fn innocents(how: &str, kills: usize) {
    const EVENTS: usize = 65;
    let database = Database::new().await;
    let (hanging, mut good) = (Hostile::start(Mode::Hang).await, Good::start().await);
    subscribe_as(&database, "orders", "bulk.*", json!({ "url": hanging.url("/") }), None).await;
    sqlx::query(
        "insert into outbox.events (topic, payload, deliver_after) \
         select 'bulk.order', to_jsonb(n), clock_timestamp() + $1::text::interval from generate_series(1, 65) as n",
    )
    .bind(how)
    .execute(&database.pool)
    .await
    .unwrap();
    let settings = [("PGOUTBOX__RELAY__LEASE", "3s")];
    for kill in 0..kills {
        let before = hanging.requests().len();
        let mut relay = ChildRelay::start(&database, &format!("killed-{kill}"), &settings).await;
        hanging.wait_until(Duration::from_secs(15), |requests| requests > before).await;
        // The rest is leased and waits.
        pause(Duration::from_millis(300)).await;
        let leased = database.count("select count(*) from outbox.owed where lease_token is not null").await;
        eprintln!("kill {kill}: {leased} leased, {} sent", hanging.requests().len() - before);
        relay.kill().await;
    }
    let sent: HashSet<Uuid> = events(&hanging).into_iter().collect();
    eprintln!("{} of {EVENTS} were in flight at some time", sent.len());
    subscribe_as(&database, "orders", "bulk.*", json!({ "url": good.url }), None).await;
    let relay = ChildRelay::start(&database, "healthy", &settings).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let dead: Vec<Uuid> = sqlx::query_scalar("select event_id from outbox.dead_letters")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let innocent = dead.iter().filter(|event| !sent.contains(event)).count();
    eprintln!("{} dead letters, {innocent} of them never sent", dead.len());
    assert_eq!(dead.len(), 0, "{innocent} of the dead letters were never sent");
    assert_eq!(good.take(EVENTS).await.len(), EVENTS);
    drop(relay);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn what_was_leased_when_relays_were_killed_is_not_blamed() {
    innocents("0 seconds", 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn what_was_deferred_and_leased_when_relays_were_killed_is_not_blamed() {
    innocents("1 second", 3).await;
}

/// Kills relays at random moments while they drain a backlog.
async fn kills_at_random(permits: u32, settings: &[(&str, &str)]) {
    const EVENTS: usize = 3_000;
    const KILLS: usize = 3;
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::new().await;
    let receiver = Hostile::start(Mode::Small(Small::new(10_000, Duration::from_millis(20)))).await;
    subscribe(&database, &[("orders".to_owned(), "bulk.*", receiver.url("/"))]).await;
    publish(&database, "bulk.order", EVENTS, None).await;
    let mut allowed = 0;
    for kill in 0..KILLS {
        let before = receiver.requests().len();
        let mut relay = ChildRelay::start(&database, &format!("killed-{kill}"), settings).await;
        receiver.wait_until(Duration::from_secs(15), |requests| requests > before + 50).await;
        pause(Duration::from_millis(rng.random_range(0..150))).await;
        relay.kill().await;
        // What it had sent to the database is done.
        database
            .eventually(
                "select not exists (select from pg_stat_activity \
                 where usename = 'relay_login' and datname = current_database())",
            )
            .await;
        let owed: Vec<Uuid> =
            sqlx::query_scalar("select id from outbox.owed join outbox.events using (position)")
                .fetch_all(&database.pool)
                .await
                .unwrap();
        let sent: BTreeSet<Uuid> = events(&receiver)[before..].iter().copied().collect();
        let open = owed.iter().filter(|event| sent.contains(event)).count();
        eprintln!("seed {seed}, kill {kill}: {} sent by this relay, {open} of them still owed", sent.len());
        assert!(open <= permits as usize, "seed {seed}: {open} may be repeated with {permits} permits");
        allowed += open;
    }
    let relay = ChildRelay::start(&database, "last", settings).await;
    let began = Instant::now();
    let distinct = || events(&receiver).into_iter().collect::<HashSet<_>>().len();
    receiver.wait_until(Duration::from_secs(40), |requests| requests >= EVENTS && distinct() == EVENTS).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    eprintln!("seed {seed}: the last relay took {:.1?}", began.elapsed());
    let requests = events(&receiver);
    let distinct = distinct();
    let copies = requests.len() - distinct;
    eprintln!("seed {seed}: {KILLS} kills, {copies} copies of at most {allowed}");
    assert_eq!(distinct, EVENTS, "seed {seed}");
    assert!(copies <= allowed, "seed {seed}: {copies} copies of at most {allowed}");
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0, "seed {seed}");
    drop(relay);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn copies_after_kills_are_at_most_what_was_in_flight_or_unsettled() {
    kills_at_random(1_024, &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn few_permits_allow_few_copies_however_much_is_leased() {
    kills_at_random(64, &[("PGOUTBOX__RELAY__PERMITS", "64"), ("PGOUTBOX__RELAY__LEASE", "3s")]).await;
}
