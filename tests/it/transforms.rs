//! Transforms: what is sent instead of the payload, transforms that fail, and trying them before they are
//! saved.

use std::{
    io::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::{Outgoing, Problem, Report, Sink, egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use serde_json::{Value, json};

use crate::support::{Database, Good, Recorder, RelayBox, deliveries::connections, relay::settings};

async fn subscribe(database: &Database, name: &str, arguments: &str) {
    database
        .execute(format!("select outbox.subscribe('{name}', array['**'], 'recorder', {arguments})"))
        .await;
}

#[tokio::test]
async fn the_value_of_a_transform_is_sent_and_without_one_the_payload_byte_for_byte() {
    let database = Database::new().await;
    let payload = "{\"b\": 1.10, \"a\": [1e400, 123456789012345678901234567890], \"id\": 7}";
    subscribe(&database, "as-it-is", "'{}'").await;
    subscribe(
        &database,
        "small",
        "transform => '{\"order\": payload.id, \"all\": payload.a, \"topic\": topic}'",
    )
    .await;
    subscribe(&database, "headers-only", "transform => 'event({\"headers\": {\"x-a\": \"b\"}})'").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute(format!("select outbox.publish('shop.orders.create', '{payload}')")).await;
    let stored: String = sqlx::query_scalar("select payload::text from outbox.events")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let mut seen: Vec<_> =
        recorder.wait_for(3).await.into_iter().map(|one| (one.subscription, one.payload)).collect();
    seen.sort();
    let huge = format!("1{}", "0".repeat(400));
    let small = format!(
        "{{\"all\":[{huge},123456789012345678901234567890],\"order\":7,\"topic\":\"shop.orders.create\"}}"
    );
    assert_eq!(
        seen,
        [
            ("as-it-is".to_owned(), stored.clone()),
            ("headers-only".to_owned(), stored),
            ("small".to_owned(), small)
        ]
    );
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// A sink that keeps deliveries.
#[derive(Debug, Clone, Default)]
struct Keeper(Arc<Mutex<Vec<Outgoing>>>);

impl Sink for Keeper {
    const KIND: &'static str = "keeper";
    type Target = ();

    fn target(&self, _: &Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), delivery: &Outgoing) -> Report {
        self.0.lock().unwrap().push(delivery.clone());
        Outcome::Delivered.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(5)
    }
}

#[tokio::test]
async fn event_changes_payload_key_headers_and_sink_fields_and_each_attempt_starts_with_the_original_event() {
    let database = Database::new().await;
    let transform = "event({\"payload\": {\"n\": payload.n + 1}, \"key\": \"eu-\" + key, \
                     \"headers\": {\"x-kind\": headers.kind}, \"sink\": {\"topic\": \"orders.eu\"}})";
    database
        .execute(format!(
            "select outbox.subscribe('kept', array['**'], 'keeper', transform => '{transform}')"
        ))
        .await;
    let keeper = Keeper::default();
    let attempts = Recorder::answering(|seen| {
        if seen.attempt == 1 {
            Outcome::Retry { reason: Reason::HandlerFailed, after: None }
        } else {
            Outcome::Delivered
        }
    });
    subscribe(
        &database,
        "again",
        "transform => '{\"n\": payload.n + 1}', retry => '{\"initial\": \"10ms\"}'",
    )
    .await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).sink(keeper.clone()).sink(attempts.clone())
    })
    .await;
    database
        .execute("select outbox.publish('a', '{\"n\": 1}', key => '7', headers => '{\"kind\": \"x\"}')")
        .await;
    let seen = attempts.wait_for(2).await;
    assert!(seen.iter().all(|one| one.payload == "{\"n\":2}"), "{seen:?}");
    assert!(relay.stop().await.complete);
    let kept = keeper.0.lock().unwrap().clone();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0].event.payload, "{\"n\":2}");
    assert_eq!(kept[0].event.key.as_deref(), Some("eu-7"));
    assert_eq!(kept[0].event.headers, "{\"x-kind\":\"x\"}");
    assert_eq!(Value::Object(kept[0].fields.as_deref().unwrap().clone()), json!({"topic": "orders.eu"}));
    database.drop().await;
}

#[tokio::test]
async fn a_transform_that_fails_makes_a_dead_letter_with_the_path_and_the_original_event() {
    let database = Database::new().await;
    subscribe(&database, "missing", "transform => '{\"id\": payload.order.id}'").await;
    subscribe(&database, "bytes", "transform => '{\"raw\": [bytes(payload.name)]}'").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('shop.orders.create', '{\"name\": \"secret-name\"}')").await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    relay.wait_asleep().await;
    let rows: Vec<(String, String, String, i32, String)> = sqlx::query_as(
        "select subscription, reason, answer, attempts, payload::text \
         from outbox.dead_letters order by subscription",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for ((_, reason, answer, attempts, payload), why) in
        rows.iter().zip(["its value.raw[0] is of type bytes", "there is no key \"order\""])
    {
        assert_eq!((reason.as_str(), *attempts), ("transform_failed", 1));
        assert!(answer.contains(why), "{answer}");
        assert!(!answer.contains("secret-name"), "{answer}");
        assert_eq!(payload, "{\"name\": \"secret-name\"}");
    }
    assert_eq!(rows.len(), 2);
    // Fixed and redriven.
    subscribe(&database, "missing", "transform => '{\"name\": payload.name}'").await;
    database.execute("select outbox.redrive(subscription => 'missing')").await;
    let seen = recorder.wait_for(1).await;
    assert_eq!(seen[0].payload, "{\"name\":\"secret-name\"}");
    assert!(relay.stop().await.complete);
    database.drop().await;
}

fn lines(output: &std::process::Output) -> Vec<Value> {
    String::from_utf8_lossy(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_subscription_can_be_tried_on_past_events_and_shows_the_failed_condition_or_the_body() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'webhook', '{\"url\": \"https://example.com/\"}', organization => 'acme', keys => array['eu-'],
                match => '{\"paid\": true}', filter => 'payload.total > 100 && payload.lines.exists(line, line.n > 1)', transform => '{\"total\": payload.total}')",
        )
        .await;
    let good = "'{\"paid\": true, \"total\": 150, \"lines\": [{\"n\": 2}]}'";
    for publish in [
        format!("('shop.orders.create', {good}, key => 'eu-1', organization => 'acme')"),
        format!("('shop.orders.create', {good}, key => 'eu-1', organization => 'other')"),
        format!("('users.create', {good}, key => 'eu-1', organization => 'acme')"),
        format!("('shop.orders.create', {good}, key => 'us-1', organization => 'acme')"),
        "('shop.orders.create', '{\"paid\": false}', key => 'eu-1', organization => 'acme')".to_owned(),
        "('shop.orders.create', '{\"paid\": true, \"total\": 150, \"lines\": []}', \
         key => 'eu-1', organization => 'acme')"
            .to_owned(),
        "('shop.orders.create', '{\"paid\": true, \"total\": 150}', \
         key => 'eu-1', organization => 'acme')"
            .to_owned(),
    ] {
        database.execute(format!("select outbox.publish{publish}")).await;
    }
    let output = database.pgoutbox(&["subscriptions", "test", "shop", "--last", "7", "--json"]);
    assert_eq!(output.status.code(), Some(1), "one could not be evaluated: {output:?}");
    let mut shown = lines(&output);
    shown.reverse();
    let conditions: Vec<_> = shown
        .iter()
        .map(|line| (line["condition"].as_str().unwrap_or(""), line["part"].as_str().unwrap_or("")))
        .collect();
    assert_eq!(
        conditions,
        [
            ("", ""),
            ("organization", ""),
            ("topics", ""),
            ("keys", ""),
            ("match", ""),
            ("filter", "payload.lines.exists(line, line.n > 1)"),
            ("", "")
        ]
    );
    assert!(shown[6]["error"].as_str().unwrap().contains("there is no key \"lines\""), "{}", shown[6]);
    // The same bytes as a relay sends.
    let body = shown[0]["body"].as_str().unwrap().to_owned();
    assert!(body.ends_with("\"data\":{\"total\":150}}"), "{body}");
    let mut receiver = Good::start().await;
    sqlx::query("update outbox.subscriptions set config = jsonb_build_object('url', $1::text)")
        .bind(&receiver.url)
        .execute(&database.pool)
        .await
        .unwrap();
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    let webhook = Webhook::new(&egress, Secrets::new(None)).unwrap();
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings("relay")).sink(webhook)).await;
    let received = receiver.take(1).await;
    assert_eq!(received[0].body, body);
    assert!(relay.stop().await.complete);

    let output = database.pgoutbox(&[
        "subscriptions",
        "test",
        "shop",
        "--last",
        "1",
        "--filter",
        "payload.total >",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("filter: line 1, column 1"), "{output:?}");
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[test]
fn a_draft_can_be_tried_on_an_event_from_a_file_without_a_database() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(
        b"{\"topic\": \"shop.orders.create\", \"key\": \"1\", \
          \"payload\": {\"total\": 150, \"long\": 123456789012345678901234567890}}",
    )
    .unwrap();
    let run = |more: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .args(["subscriptions", "test", "--event", file.path().to_str().unwrap()])
            .args(more)
            .env_clear()
            .output()
            .unwrap()
    };
    let output = run(&[
        "--filter",
        "payload.total > 100",
        "--transform",
        "event({'payload': payload.long, 'key': null, 'sink': {'topic': 'x'}})",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let shown = &lines(&output)[0];
    assert_eq!(
        (&shown["wanted"], &shown["key"], &shown["sink"]),
        (&json!(true), &Value::Null, &json!({"topic": "x"}))
    );
    assert!(shown["body"].as_str().unwrap().ends_with("\"data\":123456789012345678901234567890}"), "{shown}");
    let output = run(&["--topics", "users.*"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).split_whitespace().next(), Some("no"));
    assert!(String::from_utf8_lossy(&output.stdout).trim_end().ends_with("topics"), "{output:?}");
    let output = run(&["--filter", "paylod.total > 100"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("line 1, column 1: there is no variable \"paylod\""),
        "{output:?}"
    );
}

#[tokio::test]
async fn payloads_that_a_transform_makes_large_are_sent_in_smaller_batches() {
    let database = Database::new().await;
    let files = tempfile::tempdir().unwrap();
    database
        .execute(
            "select outbox.subscribe('large', array['**'], 'file', '{\"path\": \"a.jsonl\"}', transform => '[1,2,3,4,5,6,7,8].map(n, payload)');
             select outbox.publish('a.b', to_jsonb(repeat('x', 100000))) from generate_series(1, 40)",
        )
        .await;
    let sinks = connections(&format!("[sinks.file]\nfolder = {:?}", files.path().to_str().unwrap()));
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&sinks).unwrap()
    })
    .await;
    database
        .eventually("select count(*) = 0 from outbox.owed where (select count(*) = 40 from outbox.events)")
        .await;
    database.eventually("select count(*) = 40 from outbox.event_status where status = 'completed'").await;
    relay.stop().await;
    let lines = std::fs::read_to_string(files.path().join("a.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 40);
    assert!(lines.lines().all(|line| line.len() > 800_000));
    database.drop().await;
}
