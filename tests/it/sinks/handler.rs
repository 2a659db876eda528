//! The handler sink: functions of the program that embeds the relay.

use std::{sync::Arc, time::Duration};

use pgoutbox::{
    Event,
    relay::telemetry::Signal,
    sinks::handler::{HandlerError, Rejected},
};
use serde::Deserialize;
use sqlx::Executor as _;
use tokio::sync::mpsc;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

#[derive(Debug, Deserialize, PartialEq)]
struct User {
    name: String,
}

async fn publish(database: &Database, topic: &str, payload: &str) {
    sqlx::query("select outbox.publish($1, $2::jsonb)")
        .bind(topic)
        .bind(payload)
        .execute(&database.pool)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_get_the_events_of_their_topics_raw_or_typed_and_are_listed_as_subscriptions() {
    let database = Database::new().await;
    let (seen, mut came) = mpsc::channel(10);
    let typed = seen.clone();
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder
            .settings(settings("relay"))
            .handler("search-indexer", ["public.users.*"], move |event: Arc<Event>| {
                let seen = seen.clone();
                async move { seen.send(format!("raw {}", event.payload)).await }
            })
            .typed_handler("welcome", ["public.users.create"], move |event: Arc<Event>, user: User| {
                let seen = typed.clone();
                async move { seen.send(format!("{} {}", event.topic, user.name)).await }
            })
    })
    .await;
    publish(&database, "public.users.create", "{\"name\": \"Zoë\"}").await;
    publish(&database, "public.users.create", "[]").await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(came.recv().await.unwrap());
    }
    all.sort_unstable();
    assert_eq!(all, ["public.users.create Zoë", "raw []", "raw {\"name\": \"Zoë\"}"]);
    relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "dead_letter", .. })).await;
    let reason: String =
        sqlx::query_scalar("select reason from outbox.dead_letters").fetch_one(&database.pool).await.unwrap();
    assert_eq!(reason, "payload_unusable");
    let listed: Vec<(String, String)> =
        sqlx::query_as("select name, sink from outbox.subscription_status order by name")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(
        listed,
        [("search-indexer".to_owned(), "handler".to_owned()), ("welcome".to_owned(), "handler".to_owned())]
    );
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_or_a_panic_is_retried_and_a_rejection_is_not() {
    let database = Database::new().await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).handler("moody", ["**"], |event: Arc<Event>| async move {
            match event.payload.as_str() {
                "1" => Err(HandlerError::from("not today")),
                "2" => panic!("a bug"),
                "3" => Err(Rejected("never".to_owned()).into()),
                _ => Ok(()),
            }
        })
    })
    .await;
    database
        .pool
        .execute("update outbox.subscriptions set retry = '{\"max_attempts\": 2, \"initial\": \"20ms\"}'")
        .await
        .unwrap();
    let mut relay = relay;
    for payload in ["1", "2", "3", "4"] {
        publish(&database, "a.b", payload).await;
    }
    for _ in 0..3 {
        relay.wait(|signal| matches!(signal, Signal::Settled { verdict: "dead_letter", .. })).await;
    }
    let letters: Vec<(String, String, i32, Option<String>)> = sqlx::query_as(
        "select payload::text, reason, attempts, answer from outbox.dead_letters order by position",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let expected = [
        ("1", "handler_failed", 2, Some("not today")),
        ("2", "sink_panicked", 2, None),
        ("3", "handler_failed", 1, Some("never")),
    ];
    let expected = expected.map(|(payload, reason, attempts, answer)| {
        (payload.to_owned(), reason.to_owned(), attempts, answer.map(str::to_owned))
    });
    assert_eq!(letters, expected);
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_without_the_handler_leaves_its_events_to_the_one_with_it() {
    let database = Database::new().await;
    let first = RelayBox::start_with(&database, |builder| {
        builder
            .settings(settings("first"))
            .handler("only-here", ["old.**"], |_| async { Ok::<(), HandlerError>(()) })
    })
    .await;
    first.stop().await;
    let recorder = Recorder::new();
    let without = RelayBox::start(&database, &recorder).await;
    publish(&database, "new.topic", "1").await;
    publish(&database, "old.topic", "2").await;
    let (seen, mut came) = mpsc::channel(10);
    let again = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("again")).handler(
            "only-here",
            ["old.**", "new.**"],
            move |event: Arc<Event>| {
                let seen = seen.clone();
                async move { seen.send(event.payload.clone()).await }
            },
        )
    })
    .await;
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), came.recv()).await.unwrap().unwrap(), "2");
    publish(&database, "new.topic", "3").await;
    assert_eq!(tokio::time::timeout(Duration::from_secs(30), came.recv()).await.unwrap().unwrap(), "3");
    again.stop().await;
    without.stop().await;
}

#[tokio::test]
async fn a_handler_cannot_take_the_name_of_another_subscription() {
    let database = Database::new().await;
    database.pool.execute("select outbox.subscribe('taken', array['**'], 'stdout')").await.unwrap();
    let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
    let refused = pgoutbox::Relay::builder(pool)
        .handler("taken", ["**"], |_| async { Ok::<(), HandlerError>(()) })
        .build()
        .await;
    let shown = format!("{:#}", anyhow::Error::from(refused.unwrap_err()));
    assert!(shown.contains("use another name for the handler"), "{shown}");
}
