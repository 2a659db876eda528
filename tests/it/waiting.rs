//! Deliveries that wait: listed, sent now, cancelled, and made due by a corrected address.

use std::time::Duration;

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::Settings,
};
use serde_json::{Value, json};

use crate::{
    support::{Database, Good, Recorder, RelayBox, hostile::Hostile, relay::settings},
    webhook_relay::{publish, relay_settings, start, status, subscribe},
};

/// Retries that come in ten hours.
const PATIENT: &str = r#"{"initial": "10h", "max": "10h", "max_age": "30d"}"#;

/// Nine deliveries of two subscriptions in all places: three retries, one of them leased, one that is
/// scheduled for later, three in the backlog, two of a relay that ended, and one that a relay holds.
async fn waiting_everywhere() -> Database {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['**'], 'recorder');
             select outbox.subscribe('mail', array['**'], 'recorder');
             select outbox.publish('shop.order.' || n, '1') from generate_series(1, 10) as n;
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since, attempt)
             select 1, now() + interval '9 h', position, created_at, now(), 3 from outbox.events where position <= 2;
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, attempt, lease_token)
             select 1, now() + interval '1 h', position, created_at, 1, outbox.new_id() from outbox.events where position = 3;
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
             select 2, now() + interval '9 h', position, created_at, now() + interval '9 h' from outbox.events where position = 4;
             insert into outbox.backlog (subscription_id, positions, created_from, created_until)
             select 2, '{[5,8)}', min(created_at), max(created_at) from outbox.events;
             insert into outbox.pages (lease_token, due_at, relay, created_from, created_until, subscriptions, owed, owed_since, done)
             select outbox.new_id(), now() - interval '1 s', 'gone', min(created_at), max(created_at), array[1::bigint], array['{[7,10)}'::int8multirange],
                    array[now()], '{[1,2)}'::int4multirange from outbox.events
              union all
             select outbox.new_id(), now() + interval '1 h', 'alive', min(created_at), max(created_at), '{1}', array['{[10,11)}'::int8multirange],
                    array[now()], '{}' from outbox.events;
             insert into outbox.attempts (subscription_id, position, attempt, duration, outcome, reason, status, answer, relay)
             values (1, 1, 3, '1 s', 'retry', 'server_error', 500, 'boom', 'r'), (1, 2, 3, '1 s', 'retry', 'timeout', null, null, 'r')",
        )
        .await;
    database
}

fn printed(database: &Database, arguments: &[&str]) -> String {
    let output = database.pgoutbox(&[&["deliveries"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn topics(database: &Database, filter: &[&str]) -> Vec<String> {
    let lines = printed(database, &[&["list", "--json"], filter].concat());
    let mut topics: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|row| format!("{} {}", row["subscription"].as_str().unwrap(), row["topic"].as_str().unwrap()))
        .collect();
    topics.sort();
    topics
}

#[tokio::test]
async fn what_waits_is_listed_wherever_it_waits_and_taken_by_every_filter() {
    let database = waiting_everywhere().await;
    let all = [
        "mail shop.order.4",
        "mail shop.order.5",
        "mail shop.order.6",
        "mail shop.order.7",
        "shop shop.order.1",
        "shop shop.order.2",
        "shop shop.order.7",
        "shop shop.order.9",
    ];
    assert_eq!(topics(&database, &[]), all);
    assert_eq!(topics(&database, &["--subscription", "shop"]), all[4..]);
    assert_eq!(topics(&database, &["--topic", "shop.*.7"]), ["mail shop.order.7", "shop shop.order.7"]);
    assert_eq!(topics(&database, &["--error-like", "5__"]), ["shop shop.order.1"]);
    assert_eq!(topics(&database, &["--error-like", "time%"]), ["shop shop.order.2"]);
    let event: uuid::Uuid = sqlx::query_scalar("select id from outbox.events where position = 6")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    assert_eq!(topics(&database, &["--event", &event.to_string()]), ["mail shop.order.6"]);
    assert_eq!(printed(&database, &["list", "--limit", "3", "--json"]).lines().count(), 3);
    assert!(printed(&database, &["list"]).contains("when possible"), "a table for people");

    // A dry run says what would be done, and does nothing.
    let before = "select count(*) from outbox.owed";
    assert_eq!(database.count(before).await, 10);
    assert_eq!(printed(&database, &["retry", "--dry-run"]), "7", "what is scheduled for later stays");
    assert_eq!(printed(&database, &["cancel", "--dry-run", "--limit", "2"]), "2");
    assert_eq!(
        printed(&database, &["cancel", "--dry-run", "--json", "--topic", "shop.order.7"]),
        r#"{"would_cancel":2,"matching":2}"#
    );
    assert_eq!(database.count("select count(*) from outbox.deliveries where asked").await, 0);
    assert_eq!(database.count(before).await, 10);

    assert_eq!(printed(&database, &["retry", "--error-like", "5__"]), "1");
    assert_eq!(printed(&database, &["retry", "--subscription", "mail", "--topic", "**.5"]), "1");
    let asked = "select string_agg(position || ':' || attempt, ' ' order by position) from outbox.deliveries \
                  where asked and due_at <= now() and lease_token is null";
    let asked: String = sqlx::query_scalar(asked).fetch_one(&database.pool).await.unwrap();
    assert_eq!(asked, "1:3 5:0", "attempts go on counting");
    assert_eq!(
        database
            .count("select outbox.retry(event => (select id from outbox.events where position = 4))")
            .await,
        1
    );
    assert_eq!(
        printed(&database, &["retry", "--all"]),
        "5",
        "those that were asked for are not asked for again"
    );
    assert_eq!(printed(&database, &["retry", "--all"]), "0");
    assert_eq!(database.count(before).await, 10);
    database.drop().await;
}

#[tokio::test]
async fn what_is_cancelled_is_owed_no_more_and_a_dead_letter_of_it_can_be_redriven() {
    let database = waiting_everywhere().await;
    let refused = database.pgoutbox(&["deliveries", "cancel"]);
    assert_eq!(refused.status.code(), Some(2), "it asks first: {refused:?}");
    assert_eq!(printed(&database, &["cancel", "--yes", "--topic", "shop.order.6"]), "1");
    assert_eq!(printed(&database, &["cancel", "--yes", "--error-like", "boom", "--dead-letters"]), "1");
    let letter: (String, i32, String, i32) =
        sqlx::query_as("select reason, status, answer, attempts from outbox.dead_letters")
            .fetch_one(&database.pool)
            .await
            .unwrap();
    assert_eq!(letter, ("cancelled".to_owned(), 500, "boom".to_owned(), 3));
    assert_eq!(database.count("select outbox.redrive()").await, 1);
    // The page of a relay that may only be frozen gets another token: it sends nothing more of it.
    let token = "select lease_token from outbox.pages where relay = 'gone'";
    let before: uuid::Uuid = sqlx::query_scalar(token).fetch_one(&database.pool).await.unwrap();
    assert_eq!(printed(&database, &["cancel", "--yes", "--subscription", "shop", "--topic", "**.7"]), "1");
    let after: uuid::Uuid = sqlx::query_scalar(token).fetch_one(&database.pool).await.unwrap();
    assert_ne!(before, after);
    assert_eq!(database.count("select outbox.cancel()").await, 6);
    // What relays hold is theirs: a leased row, and a page.
    let held = "select string_agg(place || position, ' ' order by position) from outbox.owed";
    let held: String = sqlx::query_scalar(held).fetch_one(&database.pool).await.unwrap();
    assert_eq!(held, "delivery3 page10");
    assert_eq!(database.count("select count(*) from outbox.pages").await, 1, "an empty page is deleted");
    assert_eq!(database.count("select count(*) from outbox.backlog").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_pattern_that_is_none_is_refused_before_anything_is_chosen() {
    let database = Database::new().await;
    for (call, arguments) in [
        ("outbox.redrive(topic => 'a..b')", ["dead-letters", "redrive"].as_slice()),
        ("outbox.discard(topic => 'a..b')", &["dead-letters", "discard", "--yes"]),
        ("outbox.retry(topic => 'a..b')", &["deliveries", "retry"]),
        ("outbox.cancel(topic => 'a..b')", &["deliveries", "cancel", "--yes"]),
        ("outbox.topic_matches('a..b', 'a.b')", &["dead-letters", "list"]),
        ("outbox.topic_matches('a*b', 'a.b')", &["deliveries", "list"]),
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(format!("select {call}")))
            .execute(&database.pool)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("is not a topic pattern"), "{call}: {error}");
        let output = database.pgoutbox(&[arguments, &["--topic", "a..b"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.code() == Some(2) && error.contains("\"a..b\" is not a topic pattern"),
            "{arguments:?}: {output:?}"
        );
    }
    database.drop().await;
}

#[tokio::test]
async fn a_retry_sends_at_once_what_would_wait_for_hours() {
    let database = Database::new().await;
    let recorder = Recorder::answering(|seen| match seen.attempt {
        1 => Outcome::Retry { reason: Reason::ServerError, after: None },
        _ => Outcome::Delivered,
    });
    database
        .execute(format!("select outbox.subscribe('shop', array['**'], 'recorder', retry => '{PATIENT}')"))
        .await;
    let mut relay = RelayBox::start(&database, &recorder).await;
    publish(&database, "a.b", 3).await;
    database
        .eventually("select count(*) = 3 from outbox.deliveries where due_at > now() + interval '1 h'")
        .await;
    database.eventually("select count(*) = 3 from outbox.attempts").await;
    relay.wait_asleep().await;
    assert_eq!(printed(&database, &["retry", "--error-like", "server%"]), "3");
    recorder.wait_for(6).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn what_waited_for_a_corrected_address_is_due_spread_and_what_is_scheduled_stays() {
    let database = Database::new().await;
    let (broken, mut good) = (Hostile::start(status(404)).await, Good::start().await);
    let patient: Value = serde_json::from_str(PATIENT).unwrap();
    subscribe(&database, "shop", "**", json!({"url": broken.url("/")}), patient.clone()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 3).await;
    database.execute("select outbox.publish('a.b', '4', deliver_after => now() + interval '5 h')").await;
    database
        .eventually("select count(*) = 4 from outbox.deliveries where due_at > now() + interval '1 h'")
        .await;
    subscribe(&database, "shop", "**", json!({"url": good.url}), patient.clone()).await;
    good.take(3).await;
    database.eventually("select count(*) = 1 from outbox.owed").await;
    relay.stop().await;

    // Many come within minutes, not at once, and none later than it would have come anyway.
    database
        .execute(
            "delete from outbox.deliveries;
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
             select id, now() + interval '10 h', n, now(), now() - interval '1 h'
               from outbox.subscriptions, generate_series(1, 999) as n;
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, owed_since)
             select id, now() + interval '1 s', 1000, now(), now() - interval '1 h' from outbox.subscriptions",
        )
        .await;
    subscribe(&database, "shop", "**", json!({"url": broken.url("/")}), patient).await;
    let spread = "select count(*) filter (where due_at < now() + interval '9.9 s') between 900 and 1000 \
                     and count(*) filter (where due_at > now() + interval '1 s') > 500 \
                     and max(due_at) < now() + interval '1 min' \
                     and min(due_at) filter (where position = 1000) < now() + interval '2 s' \
                     and count(*) filter (where asked) = 1 from outbox.deliveries";
    let is_spread: bool = sqlx::query_scalar(spread).fetch_one(&database.pool).await.unwrap();
    assert!(is_spread);
    database.drop().await;
}

#[tokio::test]
async fn operators_and_relays_that_take_at_the_same_time_lose_and_repeat_nothing() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    let quick = Settings { permits: 32, poll: Some(Duration::from_millis(100)), ..settings("relay") };
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(quick).sink(recorder.clone())).await;
    let mut taken = [0, 0];
    for round in 0..20 {
        database.execute("select outbox.pause('shop')").await;
        publish(&database, "a.b", 200).await;
        database.eventually("select unrouted = 0 from outbox.log_status").await;
        database.execute("select outbox.resume('shop')").await;
        if round % 2 == 0 {
            taken[0] += database.count("select outbox.retry(max_rows => 70)").await;
        } else {
            taken[1] += database.count("select outbox.cancel(max_rows => 70)").await;
        }
    }
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    let mut sent: Vec<i64> = recorder.seen().iter().map(|seen| seen.position).collect();
    sent.sort_unstable();
    let attempts = sent.len();
    sent.dedup();
    assert_eq!(attempts, sent.len(), "none is sent twice");
    assert!(taken.iter().all(|count| *count > 0), "there was something to take: {taken:?}");
    assert_eq!(sent.len() as i64 + taken[1], 4000, "what was not cancelled was sent");
    database.drop().await;
}
