//! Other clients of the database take what relays need: every connection, a lock on a whole table.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use pgoutbox::{
    delivery::{Outcome, Reason},
    lab::private_postgres::{Options, PrivatePostgres},
    relay::Settings,
};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, PgConnection};

use crate::support::{Books, Database, LedgerSink, Recorder, RelayBox, pause, relay::settings};

/// For how long a table is locked: longer than a statement of a relay waits for a lock.
const LOCKED: Duration = Duration::from_millis(2_500);
/// So long after the lock is released, everything is delivered.
const RESUMES: Duration = Duration::from_secs(8);

/// The tables that a relay writes or reads all the time.
const TABLES: [&str; 8] =
    ["events", "cursor", "pages", "deliveries", "backlog", "subscriptions", "relays", "generation"];

async fn while_a_table_is_locked(table: &str) {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let polling = Settings { poll: Some(Duration::from_millis(500)), ..settings("relay") };
    let build = |builder: pgoutbox::relay::Builder| builder.settings(polling).sink(recorder.clone());
    let relay = RelayBox::start_with(&database, build).await;
    database.execute("select outbox.publish('a.b', '0')").await;
    recorder.wait_for(1).await;
    let mut holder = database.pool.begin().await.unwrap();
    let lock = format!("lock table outbox.{table} in access exclusive mode");
    holder.execute(AssertSqlSafe(lock)).await.unwrap();
    let publish = "select outbox.publish('a.b', to_jsonb(n)) from generate_series(1, 20) as n";
    let held = async {
        pause(LOCKED).await;
        let waiting = database
            .count(
                "select count(*) from pg_stat_activity \
                  where datname = current_database() and wait_event_type = 'Lock' \
                    and application_name like 'pgoutbox/%'",
            )
            .await;
        assert!(waiting <= 8, "{table}: {waiting} sessions of the relay wait");
        holder.rollback().await.unwrap();
    };
    // Who publishes into a locked log waits, too.
    tokio::join!(database.execute(publish), held);
    let released = Instant::now();
    recorder.wait_for(21).await;
    let took = released.elapsed();
    assert!(took < RESUMES, "{table}: delivered {took:?} after the lock was released");
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), 21, "{table}: none is sent twice");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_on_a_whole_table_piles_nothing_up_and_everything_goes_on_afterwards() {
    join_all(TABLES.map(while_a_table_is_locked)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_flight_is_renewed_and_settled_while_others_hold_every_connection() {
    let few = [("max_connections", "40"), ("superuser_reserved_connections", "0")];
    let options = Options {
        durable: false,
        settings: few.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        ..Options::default()
    };
    let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let books = Books::default();
    books.subscribe(&database, "all", &["**"], None).await;
    let sink = LedgerSink { takes: Duration::from_secs(4), ..LedgerSink::new(&books) };
    let short = Settings { lease: Duration::from_secs(3), ..settings("relay") };
    let build = |builder: pgoutbox::relay::Builder| builder.settings(short).sink(sink);
    let relay = RelayBox::start_with(&database, build).await;
    // The first ones open the connections of each stage.
    for _ in 0..2 {
        books.publish(&database.pool, "a.b").await;
    }
    database.eventually("select not exists (select from outbox.owed)").await;
    for _ in 0..2 {
        books.publish(&database.pool, "a.b").await;
    }
    books.wait_for(4, Duration::from_secs(10)).await;
    let mut taken: Vec<PgConnection> = Vec::new();
    while let Ok(one) = database.options.connect().await {
        taken.push(one);
    }
    assert!(taken.len() > 10, "{} connections were free", taken.len());
    // Longer than the lease, and until the attempts have ended.
    let settled = "select not exists (select from outbox.owed)";
    let (began, mut looks) = (Instant::now(), tokio::time::interval(Duration::from_millis(50)));
    while !sqlx::query_scalar::<_, bool>(settled).fetch_one(&mut taken[0]).await.unwrap() {
        assert!(began.elapsed() < Duration::from_secs(10), "not settled without a new connection");
        looks.tick().await;
    }
    drop(taken);
    assert!(relay.stop().await.complete);
    assert_eq!(books.requests(), 4, "no lease ran out");
    assert_eq!(books.balance(&database, 0).await.duplicates(), 0);
    database.pool.close().await;
    tokio::task::spawn_blocking(|| drop(server)).await.unwrap();
}

/// What operators do, all at once, each in an order of its own.
const OPERATIONS: [&str; 7] = [
    "select outbox.redrive('all', max_rows => 200)",
    "select outbox.redrive('keyed', max_rows => 200)",
    "select outbox.retry('all', max_rows => 200)",
    "select outbox.retry(max_rows => 200)",
    "update outbox.subscriptions set max_in_flight = 2 + (random() * 30)::integer where name = 'keyed'",
    "select outbox.pause('all'), outbox.resume('all')",
    "delete from outbox.attempts where at < now() - interval '100 ms'",
];

/// Repeats a statement until this time. Returns its errors.
async fn repeat(database: &Database, statement: &'static str, until: Instant) -> Vec<String> {
    let mut connection = database.connection().await;
    let mut errors = Vec::new();
    while Instant::now() < until {
        if let Err(error) = connection.execute(statement).await {
            errors.push(format!("{statement}: {error}"));
        }
        pause(Duration::from_millis(5)).await;
    }
    errors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_operators_and_publishers_at_once_give_nobody_an_error_and_lose_nothing() {
    let database = Database::new().await;
    let retry = r#"{"schedule": ["20ms"], "jitter": 0}"#;
    database
        .execute(format!(
            "select outbox.subscribe('all', array['**'], 'recorder', retry => '{retry}'); \
             select outbox.subscribe('keyed', array['**'], 'recorder', ordering => 'key', retry => '{retry}')"
        ))
        .await;
    let is_down = Arc::new(AtomicBool::new(true));
    let down = is_down.clone();
    let recorder = Recorder::answering(move |one| {
        if down.load(Ordering::Acquire) && one.position % 3 == 0 {
            Outcome::Retry { reason: Reason::Refused, after: None }
        } else {
            Outcome::Delivered
        }
    });
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        let build = |builder: pgoutbox::relay::Builder| {
            let polling = Settings { poll: Some(Duration::from_millis(200)), ..settings(name) };
            builder.settings(polling).sink(recorder.clone())
        };
        relays.push(RelayBox::start_with(&database, build).await);
    }
    let until = Instant::now() + Duration::from_secs(6);
    let publish = "select outbox.publish('a.b', '1', key => 'k' || (random() * 20)::integer)";
    let statements = OPERATIONS.into_iter().chain([publish; 2]);
    let errors = join_all(statements.map(|statement| repeat(&database, statement, until))).await.concat();
    assert!(errors.is_empty(), "{} errors: {:#?}", errors.len(), errors.iter().take(5).collect::<Vec<_>>());
    is_down.store(false, Ordering::Release);
    // A verdict of before may be written after the first of these.
    database
        .eventually(
            "select outbox.redrive('all', max_rows => 100000) = 0 \
                    and outbox.redrive('keyed', max_rows => 100000) = 0 \
                    and not exists (select from outbox.owed) \
                    and not exists (select from outbox.dead_letters) \
                    and (select unrouted = 0 from outbox.log_status)",
        )
        .await;
    let events = database.count("select count(*) from outbox.events where topic = 'a.b'").await;
    let arrived: BTreeSet<_> =
        recorder.seen().into_iter().map(|one| (one.subscription, one.position)).collect();
    assert_eq!(i64::try_from(arrived.len()).unwrap(), 2 * events);
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}
