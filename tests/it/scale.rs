//! Millions of rows that are in the way cost what comes after them nothing. Run by `make scale`: they take
//! minutes, and gigabytes of disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use pgoutbox::{
    delivery::Outcome,
    lab::private_postgres::{Options, PrivatePostgres},
    relay::Builder,
    sink::{Outgoing, Problem, Report, Sink},
};
use sqlx::{Executor, PgConnection};

use crate::support::{Database, Recorder, RelayBox, pause, relay::settings};

/// Events of one measurement: more than a page.
const SOME: usize = 5_000;
/// For what is only made ready.
const LONG: Duration = Duration::from_secs(900);

fn events(topic: &str, number: usize) -> String {
    format!(
        "insert into outbox.events (topic, payload)
         select '{topic}', '{{\"n\": 1}}' from generate_series(1, {number})"
    )
}

/// Time from the commit of so many events to the receipt of the last.
async fn delivered(recorder: &Recorder, commit: impl Future<Output = ()>, number: usize) -> Duration {
    let expected = recorder.seen().len() + number;
    let began = Instant::now();
    commit.await;
    recorder.wait_for(expected).await;
    began.elapsed()
}

/// A transaction that keeps every dead row version.
async fn holding(database: &Database) -> PgConnection {
    let mut holder = database.connection().await;
    holder
        .execute(
            "begin isolation level repeatable read; select pg_current_xact_id(), count(*) from outbox.events",
        )
        .await
        .unwrap();
    holder
}

async fn all_routed(database: &Database) {
    database.eventually_within(LONG, "select unrouted = 0 from outbox.log_status").await;
}

#[tokio::test]
#[ignore = "takes a minute: make scale"]
async fn events_that_commit_late_behind_two_million_others_are_delivered_as_fast_as_any() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    delivered(&recorder, database.execute(events("some.warm", SOME)), SOME).await;
    let at_once = delivered(&recorder, database.execute(events("some.now", SOME)), SOME).await;

    let mut late = database.connection().await;
    late.execute("begin").await.unwrap();
    late.execute(sqlx::AssertSqlSafe(events("some.late", SOME))).await.unwrap();
    for _ in 0..20 {
        database.execute(events("other.thing", 100_000)).await;
    }
    all_routed(&database).await;
    let commit = async {
        late.execute("commit").await.unwrap();
    };
    let after_all = delivered(&recorder, commit, SOME).await;
    println!("{SOME} events at once: {at_once:?}; behind 2,000,000: {after_all:?}");
    assert!(after_all < at_once * 3 + Duration::from_millis(500), "{after_all:?} beside {at_once:?}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
#[ignore = "takes minutes: make scale"]
async fn ten_million_events_that_were_rolled_back_under_a_held_snapshot_stop_nothing() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    database.execute("alter table outbox.events_default set (autovacuum_enabled = off)").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    delivered(&recorder, database.execute(events("some.warm", SOME)), SOME).await;
    let before = delivered(&recorder, database.execute(events("some.now", SOME)), SOME).await;

    let holder = holding(&database).await;
    let mut load = database.connection().await;
    load.execute("begin").await.unwrap();
    for _ in 0..10 {
        load.execute(sqlx::AssertSqlSafe(events("other.thing", 1_000_000))).await.unwrap();
    }
    let beside = delivered(&recorder, database.execute(events("some.beside", SOME)), SOME).await;
    load.execute("rollback").await.unwrap();
    let first = delivered(&recorder, database.execute(events("some.after", SOME)), SOME).await;
    let then = delivered(&recorder, database.execute(events("some.then", SOME)), SOME).await;
    println!("before {before:?}, beside the load {beside:?}, after it {first:?}, then {then:?}");
    assert!(then < before * 3 + Duration::from_millis(500), "{then:?} beside {before:?}");
    // A relay that starts now finds them all in its way.
    relay.stop().await;
    let relay = RelayBox::start(&database, &recorder).await;
    let anew = delivered(&recorder, database.execute(events("some.anew", SOME)), SOME).await;
    println!("by a relay that starts afterwards {anew:?}");
    assert!(anew < before * 3 + Duration::from_millis(500), "{anew:?} beside {before:?}");
    relay.stop().await;
    drop(holder);
    database.drop().await;
}

#[tokio::test]
#[ignore = "takes minutes: make scale"]
async fn ten_million_settled_deliveries_under_a_held_snapshot_delay_no_delivery() {
    let later = format!(
        "insert into outbox.events (topic, payload, deliver_after)
         select 'some.thing', '1', now() + interval '200 ms' from generate_series(1, {SOME})"
    );
    let waiting = |until: &str, number: usize| {
        format!(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
             select 1, now() - interval '{until}' + n * interval '1 ms', event.position, event.created_at
               from generate_series(1, {number}) as n
              cross join (select * from outbox.events order by position limit 1) as event"
        )
    };
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    database.execute("alter table outbox.deliveries set (autovacuum_enabled = off)").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    delivered(&recorder, database.execute(&later), SOME).await;
    let before = delivered(&recorder, database.execute(&later), SOME).await;

    let holder = holding(&database).await;
    database.execute("select outbox.pause('some')").await;
    for _ in 0..10 {
        database.execute(waiting("1 day", 1_000_000)).await;
    }
    database.execute("delete from outbox.deliveries").await;
    // Some are left among them.
    database.execute(waiting("20 hours", 10)).await;
    let resume = async {
        database.execute("select outbox.resume('some')").await;
        database.execute(&later).await;
    };
    let resumed = delivered(&recorder, resume, SOME + 10).await;
    let then = delivered(&recorder, database.execute(&later), SOME).await;
    println!("before {before:?}, resumed {resumed:?}, then {then:?}");
    relay.stop().await;
    let relay = RelayBox::start(&database, &recorder).await;
    let anew = delivered(&recorder, database.execute(&later), SOME).await;
    println!("by a relay that starts afterwards {anew:?}");
    assert!(then < before * 3 + Duration::from_secs(1), "{then:?} beside {before:?}");
    // One look at everything, which is not tried again.
    for late in [resumed, anew] {
        assert!(late < before * 3 + Duration::from_secs(12), "{late:?} beside {before:?}");
    }
    relay.stop().await;
    drop(holder);
    database.drop().await;
}

#[tokio::test]
#[ignore = "takes a minute: make scale"]
async fn a_part_of_a_million_dead_letters_costs_what_it_moves() {
    const PART: i64 = 1_000;
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    let fill = |from: i64, until: i64| {
        format!(
            "insert into outbox.dead_letters (died_at, subscription_id, subscription, reason, attempts, answer,
                                              event_id, position, created_at, topic, payload, headers, priority)
             select now() - interval '2 days' + n * interval '100 ms', 1 + n % 2 * 98, 'some', 'server_error', 12,
                    case when n % 100 = 0 then 'rare' else 'common' end,
                    gen_random_uuid(), n, now(), case when n % 1000 = 0 then 'some.rare' else 'some.thing' end,
                    '{{}}', '{{}}', 0
               from generate_series({from}, {until}) as n"
        )
    };
    let work = [
        ("redrive all", "select outbox.redrive(max_rows => 1000)"),
        ("redrive one subscription", "select outbox.redrive('some', max_rows => 1000)"),
        ("redrive an error", "select outbox.redrive(error_like => 'common%', max_rows => 1000)"),
        (
            "redrive since",
            "select outbox.redrive(since => now() - interval '47 hours 50 minutes', max_rows => 1000)",
        ),
        ("discard", "select outbox.discard(max_rows => 1000)"),
        ("discard a topic", "select outbox.discard(topic => 'some.thing', max_rows => 1000)"),
    ];
    let mut took = Vec::new();
    for (from, until) in [(1, 20_000), (20_001, 1_000_000)] {
        database.execute(fill(from, until)).await;
        database.execute("analyze outbox.dead_letters").await;
        let mut times = Vec::new();
        for (name, sql) in work {
            let began = Instant::now();
            let moved = database.count(sql).await;
            times.push((name, began.elapsed()));
            assert!(moved > 0 && moved <= PART, "{name}: {moved}");
        }
        let began = Instant::now();
        let listed = database.pgoutbox(&["dead-letters", "list"]);
        assert!(listed.status.success(), "{listed:?}");
        times.push(("list", began.elapsed()));
        println!("{until}: {times:?}");
        took.push(times);
    }
    for ((name, few), (_, many)) in took[0].iter().zip(&took[1]) {
        assert!(*many < *few * 5 + Duration::from_millis(100), "{name}: {many:?} beside {few:?}");
    }
    database.drop().await;
}

/// A sink that only counts.
#[derive(Debug, Clone, Default)]
struct Counting(Arc<AtomicUsize>);

impl Sink for Counting {
    const KIND: &'static str = "keeper";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), _: &Outgoing) -> Report {
        self.0.fetch_add(1, Ordering::Relaxed);
        Outcome::Delivered.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(15)
    }
}

/// Rows of `outbox.deliveries` that come and go for a time, each written, claimed and deleted. Returns how
/// many, and the largest size of the table with its indexes in each tenth of the time, in MiB.
async fn churn(database: &Database, sink: &Counting, length: Duration) -> (usize, Vec<i64>) {
    let later = format!(
        "insert into outbox.events (topic, payload, deliver_after)
         select 'some.thing', '1', now() + interval '100 ms' from generate_series(1, {SOME})"
    );
    let (began, mut rows, mut sizes) = (Instant::now(), 0, vec![0; 10]);
    while began.elapsed() < length {
        let expected = sink.0.load(Ordering::Relaxed) + SOME;
        let published = Instant::now();
        database.execute(&later).await;
        while sink.0.load(Ordering::Relaxed) < expected {
            assert!(published.elapsed() < LONG, "{expected} are not delivered");
            pause(Duration::from_millis(5)).await;
        }
        rows += SOME;
        let tenth = (began.elapsed().as_millis() * 10 / length.as_millis()).min(9) as usize;
        let size = database.count("select pg_total_relation_size('outbox.deliveries') >> 20").await;
        sizes[tenth] = sizes[tenth].max(size);
    }
    (rows, sizes)
}

/// Time is compressed: between two looks of autovacuum nearly as many rows come and go as at 2,000/s in the
/// minute that is usually between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes: make scale"]
async fn deliveries_that_come_and_go_take_no_more_room_after_a_while_also_after_a_held_snapshot() {
    let naps = [("autovacuum_naptime".to_owned(), "20s".to_owned())].into();
    let options = Options { settings: naps, ..Options::default() };
    let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'keeper')").await;
    let sink = Counting::default();
    let build = |builder: Builder| builder.settings(settings("relay")).sink(sink.clone());
    let relay = RelayBox::start_with(&database, build).await;
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let (rows, sizes) = churn(&database, &sink, minutes(4)).await;
    println!("{rows} rows, {} between two looks: {sizes:?} MiB", rows / 12);
    let (middle, end) = (sizes[3..6].iter().max().unwrap(), sizes[7..].iter().max().unwrap());
    assert!(*end <= middle * 5 / 4 + 4, "it grows: {sizes:?} MiB");

    let holder = holding(&database).await;
    let (held_rows, held) = churn(&database, &sink, minutes(2)).await;
    drop(holder);
    let (after_rows, after) = churn(&database, &sink, minutes(4)).await;
    println!("{held_rows} rows under a held snapshot: {held:?} MiB; {after_rows} after it: {after:?} MiB");
    let (first, last) = (after[..4].iter().max().unwrap(), after[7..].iter().max().unwrap());
    assert!(*last <= first + 4, "what was freed is not used again: {after:?} MiB");
    relay.stop().await;
}
