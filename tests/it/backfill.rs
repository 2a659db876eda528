//! Subscriptions that receive past events: none is missed or repeated, whatever happens meanwhile.

use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{Database, Recorder, RelayBox, pause, relay::settings};

async fn subscribe(database: &Database, name: &str, start: &str) {
    sqlx::query("select outbox.subscribe($1, array['a.**'], 'recorder', start => $2)")
        .bind(name)
        .bind(start)
        .execute(&database.pool)
        .await
        .unwrap();
}

async fn publish(database: &Database, from: i32, to: i32) {
    sqlx::query("select outbox.publish('a.b', to_jsonb(n)) from generate_series($1, $2) as n")
        .bind(from)
        .bind(to)
        .execute(&database.pool)
        .await
        .unwrap();
}

async fn wait_done(database: &Database, name: &str) {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let (starts, owed): (i64, i64) = sqlx::query_as(
            "select (select count(*) from outbox.starts),
                    (select count(*) from outbox.owed as delivery join outbox.subscriptions as subscription on subscription.id = subscription_id where name = $1)",
        )
        .bind(name)
        .fetch_one(&database.pool)
        .await
        .unwrap();
        if (starts, owed) == (0, 0) {
            return;
        }
        assert!(Instant::now() < until, "{starts} backfills are running, {owed} deliveries are pending");
        pause(Duration::from_millis(20)).await;
    }
}

/// The numbers that a subscription received, sorted.
fn got(recorder: &Recorder, name: &str) -> Vec<i32> {
    let mut got: Vec<i32> = recorder
        .seen()
        .iter()
        .filter(|one| one.subscription == name)
        .map(|one| one.payload.parse().unwrap())
        .collect();
    got.sort_unstable();
    got
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_beginning_means_each_event_once_while_writers_commit_late_and_two_relays_route() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "first", "now").await;
    let relays = [
        RelayBox::start_with(&database, |builder| builder.settings(settings("one")).sink(recorder.clone()))
            .await,
        RelayBox::start_with(&database, |builder| builder.settings(settings("two")).sink(recorder.clone()))
            .await,
    ];
    publish(&database, 1, 2_000).await;
    // One transaction is open all the time and commits after the subscription.
    let mut late = database.pool.begin().await.unwrap();
    late.execute("select outbox.publish('a.late', to_jsonb(0))").await.unwrap();
    let writers = async {
        for n in 0..60 {
            publish(&database, 2_001 + n * 10, 2_010 + n * 10).await;
        }
    };
    let subscriber = async {
        pause(Duration::from_millis(30)).await;
        subscribe(&database, "whole", "beginning").await;
    };
    tokio::join!(writers, subscriber);
    late.commit().await.unwrap();
    publish(&database, 2_601, 2_700).await;
    let until = Instant::now() + Duration::from_secs(60);
    while got(&recorder, "whole").len() < 2_701 {
        assert!(Instant::now() < until, "{} of 2701 have come", got(&recorder, "whole").len());
        pause(Duration::from_millis(20)).await;
    }
    wait_done(&database, "whole").await;
    assert_eq!(got(&recorder, "whole"), (0..=2_700).collect::<Vec<_>>());
    for relay in relays {
        relay.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_that_is_being_routed_when_the_subscription_comes_is_neither_missed_nor_repeated() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "first", "now").await;
    publish(&database, 1, 5_000).await;
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings("one")).sink(recorder.clone()))
            .await;
    let until = Instant::now() + Duration::from_secs(30);
    while got(&recorder, "first").len() < 500 {
        assert!(Instant::now() < until, "the first subscription should get its events");
        pause(Duration::from_millis(1)).await;
    }
    subscribe(&database, "whole", "beginning").await;
    let until = Instant::now() + Duration::from_secs(60);
    while got(&recorder, "whole").len() < 5_000 {
        assert!(Instant::now() < until, "{} of 5000 have come", got(&recorder, "whole").len());
        pause(Duration::from_millis(20)).await;
    }
    wait_done(&database, "whole").await;
    assert_eq!(got(&recorder, "whole"), (1..=5_000).collect::<Vec<_>>());
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_is_used_only_when_the_subscription_is_created_and_may_be_a_time() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "first", "now").await;
    let relay = RelayBox::start(&database, &recorder).await;
    publish(&database, 1, 10).await;
    let time: String =
        sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&database.pool).await.unwrap();
    publish(&database, 11, 20).await;
    recorder.wait_for(20).await;
    subscribe(&database, "since", &time).await;
    subscribe(&database, "now", "now").await;
    // The first event is in the transaction that creates the subscription.
    let mut together = database.pool.begin().await.unwrap();
    together
        .execute("select outbox.subscribe('together', array['a.**'], 'recorder', start => 'beginning')")
        .await
        .unwrap();
    together.execute("select outbox.publish('a.b', to_jsonb(21))").await.unwrap();
    together.commit().await.unwrap();
    for (name, expected) in [("since", 11..=21), ("now", 21..=21), ("together", 1..=21)] {
        let until = Instant::now() + Duration::from_secs(5);
        while got(&recorder, name).len() < expected.clone().count() {
            if Instant::now() >= until {
                let starts: Vec<(i64, Option<String>, Option<i64>, i64)> = sqlx::query_as(
                    "select subscription_id, settled::text, until, position from outbox.starts",
                )
                .fetch_all(&database.pool)
                .await
                .unwrap();
                panic!("{name}: {:?}; starts: {starts:?}", got(&recorder, name));
            }
            pause(Duration::from_millis(10)).await;
        }
        wait_done(&database, name).await;
        assert_eq!(got(&recorder, name), expected.collect::<Vec<_>>(), "{name}");
    }
    subscribe(&database, "now", "beginning").await;
    let starts: i64 =
        sqlx::query_scalar("select count(*) from outbox.starts").fetch_one(&database.pool).await.unwrap();
    assert_eq!(starts, 0, "an existing subscription is never rewound");
    for bad in ["yesterdayish", "infinity", "-infinity", "294276-12-31", ""] {
        let statement = format!("select outbox.subscribe('bad', array['**'], 'recorder', start => '{bad}')");
        let refusal = database.pool.execute(AssertSqlSafe(statement)).await.unwrap_err().to_string();
        assert!(
            refusal.contains(&format!("start: '{bad}' is neither now, beginning nor a time")),
            "{refusal}"
        );
    }
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_must_be_fixed_first_loses_no_past_event() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "first", "now").await;
    publish(&database, 1, 20).await;
    let mut relay = RelayBox::start(&database, &recorder).await;
    recorder.wait_for(20).await;
    let subscription = |filter: &str| {
        format!(
            "select outbox.subscribe('fixed', array['a.**'], 'recorder', filter => '{filter}', start => 'beginning')"
        )
    };
    database.execute(subscription("payload >")).await;
    database.eventually("select settled is not null from outbox.starts").await;
    relay.wait_asleep().await;
    database.execute(subscription("payload > 5")).await;
    wait_done(&database, "fixed").await;
    assert_eq!(got(&recorder, "fixed"), (6..=20).collect::<Vec<_>>());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_past_payloads_are_filtered_and_events_not_yet_reached_are_pending() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    subscribe(&database, "first", "now").await;
    let relay = RelayBox::start(&database, &recorder).await;
    let large = "select outbox.publish('a.b', jsonb_build_object('n', n, 'text', \
                 (select string_agg(md5(n::text || i), '') from generate_series(1, 1500) as i)))
                   from generate_series(1, 40) as n";
    database.execute(large).await;
    recorder.wait_for(40).await;
    database.eventually("select count(*) = 40 from outbox.event_status where status = 'completed'").await;
    relay.stop().await;

    database
        .execute(
            "select outbox.subscribe('odd', array['a.**'], 'recorder', \
             filter => 'payload.n % 2 == 1', start => 'beginning')",
        )
        .await;
    assert_eq!(database.count("select count(*) from outbox.event_status where status = 'pending'").await, 40);
    let relay = RelayBox::start(&database, &recorder).await;
    wait_done(&database, "odd").await;
    let got: Vec<i64> =
        recorder.seen().iter().filter(|one| one.subscription == "odd").map(|one| one.position).collect();
    assert_eq!(got.len(), 20);
    assert_eq!(
        database.count("select count(*) from outbox.event_status where status = 'completed'").await,
        40
    );
    relay.stop().await;
    database.drop().await;
}
