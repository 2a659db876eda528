//! Webhooks end to end, with receivers that misbehave.

use std::{net::IpAddr, sync::Arc, time::Duration};

use pgoutbox::{
    relay::{AttemptLog, Settings, telemetry::Signal},
    sink::{
        egress::{Egress, Guard, Looking},
        secret::Secrets,
    },
    sinks::webhook::Webhook,
    store::SubscriptionState,
};
use serde_json::{Value, json};
use sqlx::Connection;

use crate::support::{
    Database, Good, Recorder, RelayBox,
    hostile::{Hostile, Mode},
    relay::settings,
};

pub(crate) fn webhook() -> Webhook {
    webhook_to("127.0.0.1/32")
}

/// A sink that may send to these addresses.
pub(crate) fn webhook_to(allowed: &str) -> Webhook {
    let egress = Egress { allow: vec![allowed.parse().unwrap()], allow_http: true, ..Egress::default() };
    let inside = |_: &str| -> Looking { Box::pin(async { Ok(vec![IpAddr::from([10, 0, 0, 1])]) }) };
    let guard = Guard::with_lookup(&egress, Arc::new(inside));
    Webhook::with_guard(&egress, guard, Secrets::with_environment(None, |_| None)).unwrap()
}

/// Settings with few permits, a log of all attempts, and no drain.
pub(crate) fn relay_settings(name: &str) -> Settings {
    Settings {
        permits: 32,
        permits_per_subscription: 8,
        attempt_log: AttemptLog::All,
        drain: Duration::from_millis(200),
        poll: Some(Duration::from_millis(500)),
        ..settings(name)
    }
}

pub(crate) async fn start(database: &Database, settings: Settings) -> RelayBox {
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(webhook()).sink(Recorder::new()))
        .await
}

pub(crate) async fn subscribe(database: &Database, name: &str, topic: &str, config: Value, retry: Value) {
    sqlx::query("select outbox.subscribe($1, array[$2], 'webhook', $3, retry => $4)")
        .bind(name)
        .bind(topic)
        .bind(config)
        .bind(retry)
        .execute(&database.pool)
        .await
        .unwrap();
}

pub(crate) async fn publish(database: &Database, topic: &str, count: i32) {
    sqlx::query("select outbox.publish($1, to_jsonb(n)) from generate_series(1, $2) as n")
        .bind(topic)
        .bind(count)
        .execute(&database.pool)
        .await
        .unwrap();
}

pub(crate) fn once() -> Value {
    json!({"max_attempts": 1})
}

pub(crate) fn status(code: u16) -> Mode {
    Mode::Status(code, vec![], b"no".to_vec())
}

#[tokio::test]
async fn a_receiver_that_hangs_uses_only_its_own_permits() {
    let database = Database::new().await;
    let (hanging, mut good) = (Hostile::start(Mode::Hang).await, Good::start().await);
    subscribe(&database, "hangs", "**", json!({"url": hanging.url("/"), "timeout": "60s"}), json!({})).await;
    subscribe(&database, "works", "**", json!({"url": good.url}), json!({})).await;
    let relay = start(&database, relay_settings("relay")).await;
    for _ in 0..10 {
        publish(&database, "a.b", 30).await;
    }
    assert_eq!(good.take(300).await.len(), 300);
    assert!(hanging.connections() <= 8, "{} attempts hang at once", hanging.connections());
    database
        .eventually(
            "select backlog = 300 and in_flight between 1 and 8 \
             from outbox.subscription_status where name = 'hangs'",
        )
        .await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn retry_after_pauses_the_subscription_in_every_relay_and_costs_one_attempt() {
    let database = Database::new().await;
    let busy = Hostile::start(Mode::Status(429, vec![("retry-after", "1800".to_owned())], vec![])).await;
    let mut good = Good::start().await;
    subscribe(
        &database,
        "busy",
        "**",
        json!({"url": busy.url("/")}),
        json!({"schedule": ["0s", "0s", "0s"]}),
    )
    .await;
    subscribe(&database, "marker", "**", json!({"url": good.url}), json!({})).await;
    let one = start(&database, relay_settings("one")).await;
    let two = start(&database, relay_settings("two")).await;
    let generation = "select value from outbox.generation";
    let before = database.count(generation).await;
    publish(&database, "a.b", 1).await;
    database
        .eventually(
            "select paused_until > now() + interval '29 minutes' \
             from outbox.subscription_status where name = 'busy'",
        )
        .await;
    publish(&database, "a.b", 5).await;
    good.take(6).await;
    // A relay that has not read the pause would claim due deliveries.
    database
        .execute("update outbox.deliveries set due_at = now() - interval '1 second' where attempt = 0")
        .await;
    publish(&database, "a.b", 1).await;
    good.take(1).await;
    database
        .eventually(
            "select count(*) = 7 and count(*) filter (where attempt = 1) = 1 \
             and max(attempt) = 1 from outbox.owed",
        )
        .await;
    assert_eq!(busy.requests().len(), 1);
    assert_eq!(database.count(generation).await, before, "a pause makes no relay reload");
    let due = "select count(*) from outbox.owed where attempt = 1 and due_at > now() + interval '29 minutes'";
    assert_eq!(database.count(due).await, 1, "the next attempt waits for the pause too");
    database.execute("select outbox.resume('busy')").await;
    database.eventually("select count(*) filter (where attempt > 0) >= 2 from outbox.owed").await;
    one.stop().await;
    two.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn after_410_pending_deliveries_are_held_until_the_subscription_is_resumed() {
    let database = Database::new().await;
    let (left, mut good) = (Hostile::start(status(410)).await, Good::start().await);
    subscribe(&database, "left", "**", json!({"url": left.url("/")}), json!({"schedule": ["0s", "0s"]}))
        .await;
    subscribe(&database, "marker", "**", json!({"url": good.url}), json!({})).await;
    let mut relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 3).await;
    relay
        .wait(|signal| {
            matches!(signal, Signal::SubscriptionChanged { subscription, state: SubscriptionState::Gone }
                if subscription == "left")
        })
        .await;
    database
        .eventually(
            "select count(*) = 3 and bool_and(lease_token is null) \
             from outbox.owed where subscription_id = 1",
        )
        .await;
    // The state is committed, so later events are matched against it, whenever the relay reloads.
    let asked = left.requests().len();
    publish(&database, "a.b", 20).await;
    good.take(23).await;
    relay.wait_asleep().await;
    assert_eq!(left.requests().len(), asked, "a gone destination gets no more requests");
    let state = "select count(*) from outbox.subscription_status \
                 where name = 'left' and state = 'gone' and backlog = 3 and state_reason like '%410%resume%'";
    assert_eq!(database.count(state).await, 1, "held, and no new deliveries");
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.execute("select outbox.resume('left')").await;
    relay
        .wait(|signal| matches!(signal, Signal::SubscriptionChanged { state: SubscriptionState::Gone, .. }))
        .await;
    assert!(left.requests().len() > asked, "resuming sends again");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn neither_a_redirect_nor_a_name_reaches_the_internal_network() {
    let database = Database::new().await;
    let trap = Hostile::trap().await;
    let metadata =
        Hostile::start(Mode::Redirect(307, "http://169.254.169.254/latest/meta-data".to_owned())).await;
    let neighbour = Hostile::start(Mode::Redirect(302, trap.url("/"))).await;
    subscribe(&database, "metadata", "**", json!({"url": metadata.url("/")}), once()).await;
    subscribe(&database, "neighbour", "**", json!({"url": neighbour.url("/")}), once()).await;
    subscribe(&database, "name", "**", json!({"url": "https://internal.example/"}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 3 from outbox.dead_letters").await;
    let ends: Vec<(String, String, Option<i32>)> =
        sqlx::query_as("select subscription, reason, status from outbox.dead_letters order by subscription")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let end = |name: &str, reason: &str, status| (name.to_owned(), reason.to_owned(), status);
    assert_eq!(
        ends,
        [
            end("metadata", "redirect", Some(307)),
            end("name", "forbidden_address", None),
            end("neighbour", "redirect", Some(302))
        ]
    );
    assert_eq!((trap.connections(), metadata.requests().len(), neighbour.requests().len()), (0, 1, 1));
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_client_error_is_retried_to_the_last_attempt_unless_the_subscription_calls_it_final() {
    let database = Database::new().await;
    let (retried, last) = (Hostile::start(status(404)).await, Hostile::start(status(422)).await);
    subscribe(
        &database,
        "retried",
        "**",
        json!({"url": retried.url("/")}),
        json!({"schedule": ["0s", "0s"], "jitter": 0}),
    )
    .await;
    subscribe(&database, "final", "**", json!({"url": last.url("/"), "dead_letter_on": [422]}), json!({}))
        .await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    let letters: Vec<(String, String, i32, i32)> =
        sqlx::query_as("select subscription, reason, status, attempts from outbox.dead_letters order by 1")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let letter =
        |name: &str, status, attempts| (name.to_owned(), "client_error".to_owned(), status, attempts);
    assert_eq!(letters, [letter("final", 422, 1), letter("retried", 404, 3)]);
    assert_eq!((retried.requests().len(), last.requests().len()), (3, 1));
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.attempts").await, 4);
    database.drop().await;
}

/// A retry is due as soon as its verdict is committed. Here the relay is then delayed and finds the delivery
/// due: it must not treat it as an attempt in flight and leave it until the end of its lease.
#[tokio::test]
async fn a_retry_that_is_due_at_once_does_not_wait_for_its_lease() {
    let database = Database::new().await;
    let refusing = Hostile::start(status(404)).await;
    subscribe(
        &database,
        "refusing",
        "**",
        json!({"url": refusing.url("/")}),
        json!({"schedule": ["0s"], "jitter": 0}),
    )
    .await;
    let (lease, poll) = (Duration::from_secs(600), Some(Duration::from_millis(100)));
    let relay = start(&database, Settings { lease, poll, ..relay_settings("relay") }).await;
    let mut operator = database.connection().await;
    let mut holding = operator.begin().await.unwrap();
    sqlx::query("lock table outbox.attempts in access exclusive mode").execute(&mut *holding).await.unwrap();
    publish(&database, "a.b", 1).await;
    database
        .eventually(
            "select exists (select from outbox.owed where attempt = 2) \
             or exists (select from outbox.dead_letters where attempts = 2)",
        )
        .await;
    holding.rollback().await.unwrap();
    database.eventually("select count(*) = 1 from outbox.dead_letters where attempts = 2").await;
    assert_eq!(refusing.requests().len(), 2);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn answers_of_a_hostile_receiver_are_shortened_and_escaped() {
    let database = Database::new().await;
    let answer = [b"\x1b[2J\0\r\n\xff <b>\xe2\x80\xae".as_slice(), &[b'a'; 20_000]].concat();
    let hostile = Hostile::start(Mode::Status(500, vec![], answer)).await;
    let endless = Hostile::start(Mode::EndlessBody(500)).await;
    subscribe(&database, "hostile", "**", json!({"url": hostile.url("/")}), once()).await;
    subscribe(&database, "endless", "**", json!({"url": endless.url("/")}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    relay.stop().await;
    for table in ["dead_letters", "attempts"] {
        let answers: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select answer from outbox.{table}")))
                .fetch_all(&database.pool)
                .await
                .unwrap();
        assert_eq!(answers.len(), 2, "{table}");
        for answer in answers {
            assert!(
                answer.len() <= 1024 && !answer.chars().any(char::is_control) && !answer.contains('\u{202e}'),
                "{table}: {answer:?}"
            );
        }
    }
    database.drop().await;
}
