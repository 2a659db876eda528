//! Faults of whole processes: the binary killed, stopped and frozen.

use std::time::{Duration, Instant};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::{Connection as _, Executor as _};

use crate::support::{Books, ChildRelay, Crowd, Database, Good, Habits, Server, pause, seed};

/// Time until all deliveries that are leased now are sent or taken over.
async fn takeover(database: &Database) -> Duration {
    let leased: Vec<(i64, uuid::Uuid)> =
        sqlx::query_as("select position, lease_token from outbox.owed where lease_token is not null")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let (ids, tokens): (Vec<i64>, Vec<uuid::Uuid>) = leased.into_iter().unzip();
    let began = Instant::now();
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    loop {
        looks.tick().await;
        let left: i64 = sqlx::query_scalar(
            "select count(*) from outbox.owed where (position, lease_token) in (select * from unnest($1::bigint[], $2::uuid[]))",
        )
        .bind(&ids)
        .bind(&tokens)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        if left == 0 {
            return began.elapsed();
        }
        assert!(
            began.elapsed() < Duration::from_secs(15),
            "{left} of {} deliveries not taken over within 15 s",
            ids.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_relays_lose_nothing_and_repeat_at_most_what_they_had_in_flight() {
    const PERMITS: usize = 16;
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(40)).await;
    server.subscribe(&database, "all", &["**"]).await;
    server.subscribe(&database, "orders", &["shop.orders.*"]).await;
    // The default lease.
    let settings = [("PGOUTBOX__RELAY__PERMITS", "16")];
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        relays.push(ChildRelay::start(&database, name, &settings).await);
    }
    let habits = Habits {
        publishers: 2,
        long: Duration::ZERO,
        rests: Duration::from_millis(400),
        ..Habits::default()
    };
    let crowd = Crowd::start(&database, &books, seed, habits);
    let mut slowest = Duration::ZERO;
    for kill in 0..4 {
        books.wait_for(books.requests() + 60, Duration::from_secs(30)).await;
        pause(Duration::from_millis(rng.random_range(0..300))).await;
        let victim = rng.random_range(0..relays.len());
        relays[victim].kill().await;
        books.fault("kill", PERMITS);
        if kill == 3 {
            crowd_is_over(&mut slowest, &database).await;
        }
        relays[victim] = ChildRelay::start(&database, &format!("restarted-{kill}"), &settings).await;
    }
    crowd.stop().await;
    books.healed(&database).await;
    for mut relay in relays {
        relay.signal("TERM");
        assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", relay.log());
    }
    let findings = books.balance(&database, seed).await;
    println!(
        "4 kills: {} copies of at most {}; takeover {slowest:?}",
        findings.duplicates(),
        findings.duplicates_allowed
    );
    database.drop().await;
}

async fn crowd_is_over(slowest: &mut Duration, database: &Database) {
    *slowest = (*slowest).max(takeover(database).await);
    assert!(*slowest <= Duration::from_secs(15), "taken over after {slowest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_relay_finishes_what_is_in_flight_and_repeats_nothing() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(1_500)).await;
    server.subscribe(&database, "all", &["**"]).await;
    let settings = [("PGOUTBOX__RELAY__PERMITS", "8")];
    let mut relay = ChildRelay::start(&database, "terminated", &settings).await;
    for _ in 0..20 {
        books.publish(&database.pool, "order").await;
    }
    server.wait_knocked(8).await;
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(10)).await, Some(0), "{:#?}", relay.log());
    assert_eq!(server.switch.requests(), 8, "nothing new was claimed");
    assert_eq!(
        database.count("select count(*) from outbox.owed where lease_token is not null").await,
        0,
        "no lease is left behind"
    );
    let mut next = ChildRelay::start(&database, "next", &settings).await;
    books.wait_for(20, Duration::from_secs(10)).await;
    next.signal("TERM");
    assert_eq!(next.ended(Duration::from_secs(10)).await, Some(0));
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_runs_out_of_time_releases_its_leases_at_once_and_reports_it() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_secs(12)).await;
    server.subscribe(&database, "all", &["**"]).await;
    let settings = [("PGOUTBOX__RELAY__PERMITS", "8"), ("PGOUTBOX__RELAY__DRAIN", "1s")];
    let mut relay = ChildRelay::start(&database, "hurried", &settings).await;
    for _ in 0..4 {
        books.publish(&database.pool, "order").await;
    }
    server.wait_knocked(4).await;
    relay.signal("TERM");
    let began = Instant::now();
    assert_eq!(relay.ended(Duration::from_secs(10)).await, Some(75), "{:#?}", relay.log());
    assert!(
        began.elapsed() >= Duration::from_secs(1) && began.elapsed() < Duration::from_secs(4),
        "it took {:?}",
        began.elapsed()
    );
    let given_back =
        "select count(*) from outbox.owed where lease_token is null and due_at <= clock_timestamp()";
    assert_eq!(database.count(given_back).await, 4, "{}", database.rows_at_hand().await);
    assert_eq!(
        database
            .count("select count(*) from outbox.attempts where reason = 'relay_stopped' and ambiguous")
            .await,
        4
    );
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_stops_at_once() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_secs(12)).await;
    server.subscribe(&database, "all", &["**"]).await;
    let mut relay = ChildRelay::start(&database, "impatient", &[]).await;
    books.publish(&database.pool, "order").await;
    server.wait_knocked(1).await;
    relay.signal("TERM");
    relay.wait_for_log("a second signal stops at once").await;
    let began = Instant::now();
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(10)).await, Some(75), "{:#?}", relay.log());
    assert!(began.elapsed() < Duration::from_secs(2), "it took {:?}", began.elapsed());
    // Its lease was not released and expires.
    assert_eq!(database.count("select count(*) from outbox.owed where lease_token is not null").await, 1);
    database.drop().await;
}

/// While it is awake nobody rings, and only it looks.
#[tokio::test]
async fn a_relay_that_freezes_while_it_is_awake_leaves_no_event_waiting_for_the_poll() {
    let database = Database::new().await;
    let (busy, mut late) = (Good::counting(Duration::ZERO).await, Good::start().await);
    for (name, topic, url) in [("busy", "busy.*", &busy.url), ("late", "late.*", &late.url)] {
        let subscribe = "select outbox.subscribe($1, array[$2], 'webhook', $3)";
        let config = serde_json::json!({"url": url});
        sqlx::query(subscribe).bind(name).bind(topic).bind(config).execute(&database.pool).await.unwrap();
    }
    let settings = [("PGOUTBOX__RELAY__POLL", "20s")];
    let mut awake = ChildRelay::start(&database, "awake", &settings).await;
    let bell = |lock: i64| {
        format!(
            "select exists (select from pg_locks as lock join pg_stat_activity as session using (pid) \
              where lock.locktype = 'advisory' and lock.objid = {lock} and lock.mode = 'ExclusiveLock' \
                and lock.database = (select oid from pg_database where datname = current_database()))"
        )
    };
    database.eventually(&bell(7_411_002)).await;
    let mut other = ChildRelay::start(&database, "other", &settings).await;
    database.eventually("select count(*) = 2 from outbox.relays").await;
    loop {
        for _ in 0..20 {
            database.execute("select outbox.publish('busy.one', '1')").await;
        }
        awake.signal("STOP");
        let asleep: bool =
            sqlx::query_scalar(sqlx::AssertSqlSafe(bell(7_411_001))).fetch_one(&database.pool).await.unwrap();
        if !asleep {
            break;
        }
        awake.signal("CONT");
    }
    for number in 0..5 {
        let sleeps = "select max(query_start) < clock_timestamp() - interval '500 ms' \
                        from pg_stat_activity where application_name like 'pgoutbox/%/other'";
        if number == 0 {
            database.eventually(sleeps).await;
        }
        let published = Instant::now();
        database.execute("select outbox.publish('late.one', '1')").await;
        late.take(1).await;
        assert!(published.elapsed() < Duration::from_secs(8), "event {number}: {:?}", published.elapsed());
    }
    awake.signal("CONT");
    for relay in [&mut awake, &mut other] {
        relay.signal("TERM");
        assert_eq!(relay.ended(Duration::from_secs(20)).await, Some(0), "{:#?}", relay.log());
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_frozen_past_its_lease_repeats_at_most_its_permits_and_its_late_verdicts_change_nothing() {
    const PERMITS: usize = 8;
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(1_500)).await;
    server.subscribe(&database, "all", &["**"]).await;
    let settings = [("PGOUTBOX__RELAY__PERMITS", "8"), ("PGOUTBOX__RELAY__LEASE", "3s")];
    let mut frozen = ChildRelay::start(&database, "frozen", &settings).await;
    for _ in 0..PERMITS {
        books.publish(&database.pool, "before").await;
    }
    server.wait_knocked(PERMITS as u64).await;
    frozen.signal("STOP");
    books.fault("freeze", PERMITS);
    let mut other = ChildRelay::start(&database, "other", &settings).await;
    let began = Instant::now();
    server.wait_knocked(2 * PERMITS as u64).await;
    println!("the frozen relay's deliveries were sent by another after {:?}", began.elapsed());
    // The frozen relay has its answers and continues while the other waits for its own.
    frozen.signal("CONT");
    frozen.wait_for_log("the lease was lost before the verdict").await;
    for _ in 0..PERMITS {
        books.publish(&database.pool, "afterwards").await;
    }
    books.healed(&database).await;
    for relay in [&mut frozen, &mut other] {
        relay.signal("TERM");
        assert_eq!(relay.ended(Duration::from_secs(20)).await, Some(0), "{:#?}", relay.log());
    }
    let stale = database.count("select count(*) from outbox.attempts where stale and relay = 'frozen'").await;
    assert_eq!(stale, PERMITS as i64, "each late verdict is recorded as one that changed nothing");
    let others = "select count(*) from outbox.attempts where stale and relay <> 'frozen'";
    assert_eq!(database.count(others).await, 0, "and took nothing from the relay that held the lease");
    let findings = books.balance(&database, 0).await;
    println!("a freeze: {} copies of at most {PERMITS}", findings.duplicates());
    database.drop().await;
}

/// The queue of notifications holds 8 GB for all databases of a server. A listener in a transaction keeps
/// what was sent since, and a full queue would refuse commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishers_that_ring_for_a_frozen_relay_do_not_fill_the_queue_of_notifications() {
    const COMMITS: u32 = 20_000;
    // All databases of a server share it.
    let server =
        tokio::task::spawn_blocking(|| PrivatePostgres::start(Options::default()).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let mut good = Good::start().await;
    let config = serde_json::json!({"url": good.url});
    let subscribe = "select outbox.subscribe('wanted', array['wanted'], 'webhook', $1)";
    sqlx::query(subscribe).bind(config).execute(&database.pool).await.unwrap();
    let mut relay = ChildRelay::start(&database, "frozen", &[]).await;
    let sleeps = "select exists (select from pg_locks where locktype = 'advisory' and objid = 7411001 \
                     and mode = 'ExclusiveLock' \
                     and database = (select oid from pg_database where datname = current_database()))";
    let asleep = || sqlx::query_scalar(sleeps).fetch_one(&database.pool);
    let flood = format!(
        "do $$ begin for n in 1..{COMMITS} loop perform outbox.publish('unwanted', '1'); commit; end loop; end $$"
    );
    let mut listener = database.connection().await;
    listener.execute("listen outbox_doorbell").await.unwrap();
    let mut slept = false;
    for _ in 0..5 {
        database.eventually(sleeps).await;
        relay.signal("STOP");
        listener.execute("begin; select 1").await.unwrap();
        database.execute(&*flood).await;
        slept = asleep().await.unwrap();
        if slept {
            break;
        }
        println!("a last statement of it was on its way when it was stopped: once more");
        listener.execute("rollback").await.unwrap();
        relay.signal("CONT");
    }
    assert!(slept, "the relay slept while publishers rang");
    database.execute("select outbox.publish('wanted', '1')").await;
    let used: f64 =
        sqlx::query_scalar("select pg_notification_queue_usage()").fetch_one(&database.pool).await.unwrap();
    assert!(used > 0.0, "they rang");
    assert!(used * 200_000.0 / f64::from(COMMITS) < 0.01, "{used} of the queue after {COMMITS} commits");
    listener.close().await.unwrap();
    relay.signal("CONT");
    good.take(1).await;
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(20)).await, Some(0), "{:#?}", relay.log());
}
