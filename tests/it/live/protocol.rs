//! The messages of a client, and what it is sent.

use serde_json::{Value, json};

use crate::support::{Database, live::LiveBox};

async fn publish(database: &Database, topic: &str, from: usize, to: usize) {
    database
        .execute(format!(
            "select outbox.publish('{topic}', to_jsonb(n), key => 'k' || n % 3) from generate_series({from}, {to}) as n"
        ))
        .await;
}

fn numbers(payloads: &[Value]) -> Vec<u64> {
    payloads.iter().map(|payload| payload.as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_sent_what_is_committed_after_it_subscribed_and_nothing_else() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    publish(&database, "a.b", 1, 5).await;
    let mut client = live.connect().await;
    client.subscribe("one", &["a.*"], json!({})).await;
    assert_eq!(client.wait("caught_up").await["id"], "one");
    let mut rolled_back = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('a.b', '99')").execute(&mut *rolled_back).await.unwrap();
    rolled_back.rollback().await.unwrap();
    publish(&database, "b.c", 6, 8).await;
    publish(&database, "a.b", 9, 12).await;
    let event = client.wait("event").await;
    assert_eq!((&event["id"], &event["event"]["payload"]), (&json!("one"), &json!(9)), "{event}");
    assert_eq!(event["event"]["topic"], "a.b");
    assert_eq!(event["event"]["key"], "k0");
    assert!(event["token"].is_string() && event["event"]["id"].is_string());
    assert_eq!(numbers(&client.payloads(3).await), [10, 11, 12]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_subscriptions_of_a_connection_each_get_their_own_events() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    client.subscribe("keys", &["a.**"], json!({ "keys": ["k1"] })).await;
    client.subscribe("filter", &["a.**"], json!({ "filter": "payload > 4" })).await;
    publish(&database, "a.b", 1, 6).await;
    let mut seen = Vec::new();
    while seen.len() < 4 {
        let event = client.wait("event").await;
        seen.push((event["id"].as_str().unwrap().to_owned(), event["event"]["payload"].as_u64().unwrap()));
    }
    seen.sort();
    let expected = [("filter", 5), ("filter", 6), ("keys", 1), ("keys", 4)];
    assert_eq!(seen, expected.map(|(id, n)| (id.to_owned(), n)));
    client.send(json!({ "type": "unsubscribe", "id": "filter" })).await;
    assert_eq!(client.wait("unsubscribed").await["id"], "filter");
    publish(&database, "a.b", 7, 9).await;
    assert_eq!(numbers(&client.payloads(1).await), [7]);
    client.send(json!({ "type": "ping" })).await;
    client.wait("pong").await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_refused_with_its_code_and_the_connection_goes_on() {
    let database = Database::new().await;
    let settings = pgoutbox::live::Settings { max_subscriptions: 2, ..Default::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut client = live.connect().await;
    let subscribe = |more: Value| {
        let mut message = json!({ "type": "subscribe", "id": "x", "topics": ["a.*"] });
        message.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        message
    };
    for (message, code) in [
        (json!({ "type": "publish" }), "unknown_type"),
        (json!({ "type": "subscribe", "id": "x", "topic": "a" }), "bad_message"),
        (json!({ "type": "subscribe", "id": "x" }), "bad_message"),
        (subscribe(json!({ "id": "" })), "bad_message"),
        (subscribe(json!({ "channel": "board" })), "bad_message"),
        (subscribe(json!({ "topics": [] })), "bad_topics"),
        (subscribe(json!({ "topics": ["a..b"] })), "bad_topics"),
        (subscribe(json!({ "filter": "payload >" })), "bad_filter"),
        (subscribe(json!({ "since": "yesterday" })), "bad_token"),
        (subscribe(json!({ "since": "2026-13-01T00:00:00Z" })), "bad_token"),
        (subscribe(json!({ "since": "2026-11-01T00:00:00Z", "snapshot": true })), "bad_message"),
        (json!({ "type": "subscribe", "id": "x", "channel": "none" }), "unknown_channel"),
        (json!({ "type": "unsubscribe", "id": "x" }), "unknown_id"),
        (json!({ "type": "ack", "id": "x", "token": "t" }), "unknown_id"),
    ] {
        assert_eq!(client.refusal(message.clone()).await, code, "{message}");
    }
    client.subscribe("x", &["a.*"], json!({})).await;
    client.wait("caught_up").await;
    assert_eq!(client.refusal(subscribe(json!({}))).await, "duplicate_id");
    client.subscribe("y", &["a.*"], json!({})).await;
    client.wait("caught_up").await;
    assert_eq!(client.refusal(subscribe(json!({ "id": "z" }))).await, "too_many_subscriptions");
    publish(&database, "a.b", 1, 1).await;
    assert_eq!(numbers(&client.payloads(2).await), [1, 1]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_acknowledges_is_sent_no_more_than_it_asked_for() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    client.subscribe("a", &["a.*"], json!({ "max_unacked": 3 })).await;
    publish(&database, "a.b", 1, 10).await;
    let mut last = Value::Null;
    for n in 1..=3 {
        last = client.wait("event").await;
        assert_eq!(last["event"]["payload"], n);
    }
    // What follows a question and its answer was not sent before.
    client.send(json!({ "type": "ping" })).await;
    assert_eq!(client.next().await.unwrap()["type"], "pong");
    assert_eq!(client.refusal(json!({ "type": "ack", "id": "a", "token": "other" })).await, "bad_token");
    client.send(json!({ "type": "ack", "id": "a", "token": last["token"] })).await;
    assert_eq!(numbers(&client.payloads(3).await), [4, 5, 6]);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_and_scheduled_events_arrive_whole() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    database
        .execute(
            "select outbox.publish('a.large', to_jsonb(repeat('x', 200000))), \
                         outbox.publish('a.later', '1', deliver_after => now() + interval '1 day')",
        )
        .await;
    assert_eq!(client.wait("event").await["event"]["payload"].as_str().unwrap().len(), 200_000);
    let later = client.wait("event").await;
    assert!(later["event"]["deliver_after"].is_string(), "{later}");
    live.stop().await;
    database.drop().await;
}
