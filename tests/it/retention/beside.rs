//! Beside publishers and readers: nobody fails, and nobody waits for somebody else's long transaction.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tokio::task::JoinSet;

use super::{at, done, drop_one, event, kept_by, make, make_all, partitions, payloads, routed};
use crate::support::Database;

/// Publishers that write all the time, until they are asked how many events they wrote.
pub(super) struct Publishers {
    running: JoinSet<Duration>,
    stop: Arc<AtomicBool>,
    /// How many events each has written.
    written: [Arc<AtomicI64>; 2],
    /// The time of their events, in hours after the start.
    hours: Arc<AtomicI64>,
}

impl Publishers {
    pub(super) async fn start(database: &Database, hours: i64) -> Self {
        let mut running = JoinSet::new();
        let (stop, written) = (Arc::new(AtomicBool::new(false)), <[Arc<AtomicI64>; 2]>::default());
        let hours = Arc::new(AtomicI64::new(hours));
        for written in &written {
            let mut connection = database.connection().await;
            let (stop, written, hours) = (stop.clone(), written.clone(), hours.clone());
            let insert = format!(
                "insert into outbox.events (topic, payload, created_at)
                 values ('a.b', '1', {} + $1 * interval '1 hour')",
                at(0.0)
            );
            running.spawn(async move {
                let mut longest = Duration::ZERO;
                while !stop.load(Ordering::Acquire) {
                    let began = Instant::now();
                    let insert = sqlx::query(AssertSqlSafe(insert.clone()));
                    let hours = hours.load(Ordering::Acquire);
                    insert.bind(hours).execute(&mut connection).await.unwrap();
                    longest = longest.max(began.elapsed());
                    written.fetch_add(1, Ordering::AcqRel);
                }
                longest
            });
        }
        Self { running, stop, written, hours }
    }

    /// The time of their events from now on.
    pub(super) fn set_hours(&self, hours: i64) {
        self.hours.store(hours, Ordering::Release);
    }

    /// Waits until each has written some more: nothing of an earlier time is under way then.
    pub(super) async fn wait_for_more(&self) {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        for written in &self.written {
            let goal = written.load(Ordering::Acquire) + 10;
            while written.load(Ordering::Acquire) < goal {
                looks.tick().await;
            }
        }
    }

    /// The number of events, and the longest that one took.
    pub(super) async fn stop(self) -> (i64, Duration) {
        self.stop.store(true, Ordering::Release);
        let longest = self.running.join_all().await.into_iter().max().unwrap_or_default();
        (self.written.iter().map(|written| written.load(Ordering::Acquire)).sum(), longest)
    }
}

/// More than is scanned under a lock.
async fn fill_default(database: &Database) -> i64 {
    database
        .execute(format!(
            "insert into outbox.events (topic, payload, created_at)
             select 'a.b', to_jsonb(repeat(n::text, 100)), {} - n * interval '1 second'
               from generate_series(10001, 40000) as n",
            at(0.0)
        ))
        .await;
    let large =
        "select (pg_relation_size('outbox.events_default') > outbox_internal.scanned_at_once())::int::bigint";
    assert_eq!(database.count(large).await, 1);
    30_000
}

#[tokio::test]
async fn a_large_default_partition_is_converted_while_publishers_write_and_none_fails() {
    let database = Database::new().await;
    let before = fill_default(&database).await;
    let publishers = Publishers::start(&database, 0).await;
    let mut steps = Vec::new();
    while steps.len() < 40 {
        let step = make(&database, "events", 0.0).await;
        if done(&step) == "nothing" {
            break;
        }
        if done(&step) != "locked" {
            steps.push(done(&step).to_owned());
        }
        publishers.wait_for_more().await;
    }
    let (written, _) = publishers.stop().await;
    assert_eq!(&steps[..3], ["fenced", "validated", "converted"], "{steps:?}");
    assert_eq!(database.count("select count(*) from outbox.events").await, before + written);
    assert_eq!(database.count("select count(*) from outbox.events_default").await, 0);
    let left = "select count(*) from pg_trigger where tgname = 'retention_fence'";
    assert_eq!(database.count(left).await, 0);
    database.drop().await;
}

/// The relay that made the fence died, and none came until its time.
#[tokio::test]
async fn a_conversion_that_was_left_in_the_middle_lets_publishers_write_and_is_taken_up_again() {
    let database = Database::new().await;
    let before = fill_default(&database).await;
    assert_eq!(done(&make(&database, "events", 0.0).await), "fenced");
    for days in [1.5, 5.0, 400.0] {
        event(&database, 1, days).await;
    }
    let newest = "select (extract(epoch from max(created_at) - timestamptz '2026-03-02Z') / 86400)::bigint \
                  from outbox.events";
    assert_eq!(database.count(newest).await, 2, "set before the fence");
    assert_eq!(done(&make(&database, "events", 0.5).await), "validated", "it goes on");
    assert_eq!(done(&make(&database, "events", 5.0).await), "unfenced", "its time has come");
    event(&database, 1, 5.0).await;
    let mut steps = Vec::new();
    for _ in 0..6 {
        steps.push(done(&make(&database, "events", 5.1).await).to_owned());
    }
    assert_eq!(steps, ["fenced", "validated", "converted", "nothing", "nothing", "nothing"]);
    assert_eq!(database.count("select count(*) from outbox.events").await, before + 4);
    database.drop().await;
}

/// Later partitions beside a default one that is large, too.
#[tokio::test]
async fn partitions_are_added_beside_a_large_default_partition_and_nothing_belongs_nowhere() {
    let database = Database::new().await;
    make_all(&database, "events", -30.0).await;
    let before = fill_default(&database).await; // no relay was there for a month
    assert_eq!(done(&make(&database, "events", 0.0).await), "fenced");
    event(&database, 1, 0.1).await;
    event(&database, 1, 4.0).await; // left in the middle
    assert_eq!(done(&make(&database, "events", 0.0).await), "validated");
    assert_eq!(done(&make(&database, "events", 0.0).await), "made");
    event(&database, 1, 2.5).await;
    make_all(&database, "events", 0.0).await;
    // And from the end of the last one.
    assert_eq!(done(&make(&database, "events", 2.5).await), "fenced");
    event(&database, 1, 3.5).await;
    event(&database, 1, 4.0).await;
    make_all(&database, "events", 2.5).await;
    assert_eq!(database.count("select count(*) from outbox.events").await, before + 5);
    let left = "select count(*) from pg_trigger where tgname = 'retention_fence'";
    assert_eq!(database.count(left).await, 0);
    database.drop().await;
}

/// D-16. Neither the drop nor a conversion waits for the transaction, so nobody waits behind them.
#[tokio::test]
async fn a_publisher_that_keeps_its_transaction_open_delays_no_other() {
    let database = Database::new().await;
    for days in [0.0, 1.5, 2.5] {
        event(&database, 1, days).await;
        make_all(&database, "events", days).await;
    }
    routed(&database).await;
    let mut long = database.connection().await;
    let mut transaction = long.begin().await.unwrap();
    let insert =
        format!("insert into outbox.events (topic, payload, created_at) values ('a.b', '1', {})", at(14.0));
    transaction.execute(AssertSqlSafe(insert)).await.unwrap();
    let publishers = Publishers::start(&database, 14 * 24).await;
    let mut waited = Duration::ZERO;
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "emptied");
    let old = format!("select count(*) from outbox.events where created_at < {}", at(4.0));
    assert_eq!(database.count(old).await, 0, "the space of all of them is free");
    for _ in 0..5 {
        let began = Instant::now();
        assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "locked");
        assert_eq!(done(&make(&database, "attempts", 14.0).await), "converted");
        waited = waited.max(began.elapsed());
        database.execute("drop table outbox.attempts_until_20260318t0000").await;
        publishers.wait_for_more().await;
    }
    let (_, longest) = publishers.stop().await;
    eprintln!("a step took {waited:?} at most, a publisher {longest:?}");
    assert!(
        longest < Duration::from_secs(2),
        "the transaction stays open, and nobody waits for it: {longest:?}"
    );
    let why = kept_by(&database).await.unwrap();
    assert!(why.starts_with("a lock"), "{why}");
    transaction.commit().await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "dropped");
    assert_eq!(super::drop_all(&database, "events", 14.0).await, 2);
    database.drop().await;
}

#[tokio::test]
async fn a_reader_that_keeps_its_transaction_open_reads_on_and_its_partition_is_dropped_afterwards() {
    let database = Database::new().await;
    event(&database, 1, 0.0).await;
    make_all(&database, "events", 0.0).await;
    routed(&database).await;
    let mut reader = database.connection().await;
    let mut transaction = reader.begin().await.unwrap();
    transaction.execute("select count(*) from outbox.events").await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "locked");
    let count: i64 =
        sqlx::query_scalar("select count(*) from outbox.events").fetch_one(&mut *transaction).await.unwrap();
    assert_eq!(count, 1);
    transaction.commit().await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "dropped");
    assert_eq!(partitions(&database, "events").await, Vec::<String>::new());
    database.drop().await;
}

/// An event that is not committed yet, of a time that has passed, is not lost.
#[tokio::test]
async fn an_old_event_that_commits_late_is_not_lost() {
    let database = Database::new().await;
    event(&database, 1, 0.0).await;
    make_all(&database, "events", 0.0).await;
    routed(&database).await;
    let mut late = database.connection().await;
    let mut transaction = late.begin().await.unwrap();
    let insert =
        format!("insert into outbox.events (topic, payload, created_at) values ('a.b', '2', {})", at(0.1));
    transaction.execute(AssertSqlSafe(insert)).await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "locked");
    transaction.commit().await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "keep", 14.0).await), "nothing");
    assert_eq!(kept_by(&database).await.as_deref(), Some("events that are not routed"));
    assert_eq!(payloads(&database, "outbox.events").await, [1, 2]);
    database.drop().await;
}
