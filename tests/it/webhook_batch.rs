//! Several events in one request: collected, acknowledged in part, retried alone.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, extract::State, http::HeaderMap, routing::post};
use pgoutbox::{
    delivery::Reason,
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify, task::JoinSet};

use crate::support::{
    Database, RelayBox,
    deliveries::{deliveries, reasons},
    hostile::{Hostile, Mode},
    relay::settings,
};

/// A request: its events, id and content type.
#[derive(Debug, Clone)]
struct Request {
    id: String,
    content_type: String,
    events: Vec<Value>,
}

/// All requests, and how often each event was acknowledged.
type Seen = (Vec<Request>, HashMap<String, u32>);

/// A receiver of batches that fails chosen events the first time.
#[derive(Debug, Clone)]
struct Batches {
    fails: fn(&Value) -> bool,
    seen: Arc<Mutex<Seen>>,
    came: Arc<Notify>,
}

impl Batches {
    async fn start(fails: fn(&Value) -> bool) -> (Self, String, JoinSet<()>) {
        let batches = Self { fails, seen: Arc::default(), came: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let router = Router::new().route("/", post(receive)).with_state(batches.clone());
        let mut running = JoinSet::new();
        running.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (batches, url, running)
    }

    /// Waits until this many events were acknowledged, each once.
    async fn wait_for(&self, count: usize) -> Vec<Request> {
        let waiting = async {
            loop {
                let came = self.came.notified();
                {
                    let seen = self.seen.lock().unwrap();
                    if seen.1.values().filter(|acknowledged| **acknowledged > 0).count() >= count {
                        assert!(seen.1.values().all(|acknowledged| *acknowledged <= 1), "{:?}", seen.1);
                        return seen.0.clone();
                    }
                }
                came.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waiting).await.unwrap()
    }
}

async fn receive(
    State(batches): State<Batches>,
    headers: HeaderMap,
    Json(events): Json<Vec<Value>>,
) -> Json<Value> {
    let text = |name| headers[name].to_str().unwrap().to_owned();
    let mut failed = Vec::new();
    {
        let mut seen = batches.seen.lock().unwrap();
        for event in &events {
            let id = event["id"].as_str().unwrap().to_owned();
            let first = !seen.1.contains_key(&id);
            let acknowledged = seen.1.entry(id.clone()).or_default();
            if first && (batches.fails)(event) {
                failed.push(id);
            } else {
                *acknowledged += 1;
            }
        }
        seen.0.push(Request { id: text("webhook-id"), content_type: text("content-type"), events });
    }
    batches.came.notify_waiters();
    Json(json!({ "failed": failed }))
}

fn webhook() -> Webhook {
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    Webhook::new(&egress, Secrets::with_environment(None, |_| None)).unwrap()
}

async fn start(database: &Database, config: Value, retry: Value) -> RelayBox {
    sqlx::query("select outbox.subscribe('batches', array['**'], 'webhook', $1, retry => $2)")
        .bind(config)
        .bind(retry)
        .execute(&database.pool)
        .await
        .unwrap();
    RelayBox::start_with(database, |builder| builder.settings(settings("relay")).sink(webhook())).await
}

async fn publish(database: &Database, count: i32) {
    sqlx::query("select outbox.publish('a.b', to_jsonb(n)) from generate_series(1, $1) as n")
        .bind(count)
        .execute(&database.pool)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_were_not_acknowledged_are_retried_alone_and_no_others() {
    let database = Database::new().await;
    let (batches, url, _running) = Batches::start(|event| event["data"].as_i64().unwrap() % 10 == 0).await;
    let relay = start(&database, json!({"url": url, "batch": {"max": 20}}), json!({"initial": "50ms"})).await;
    publish(&database, 100).await;
    let requests = batches.wait_for(100).await;
    assert!(requests.iter().any(|request| request.events.len() > 1), "{requests:#?}");
    assert!(requests.iter().all(|request| request.events.len() <= 20));
    let repeated: Vec<_> =
        requests.iter().filter(|request| request.events[0]["data"].as_i64().unwrap() % 10 == 0).collect();
    assert!(repeated.iter().filter(|request| request.events.len() == 1).count() >= 10, "{repeated:#?}");
    let names: HashSet<_> = requests.iter().map(|request| &request.id).collect();
    assert_eq!(names.len(), requests.len(), "different events come under different names");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_collected_for_the_time_of_the_subscription() {
    let database = Database::new().await;
    let (batches, url, _running) = Batches::start(|_| false).await;
    let config = json!({"url": url, "body": "cloudevents", "batch": {"max": 30, "wait": "2s"}});
    let relay = start(&database, config, json!({})).await;
    for _ in 0..30 {
        publish(&database, 1).await;
    }
    let requests = batches.wait_for(30).await;
    assert_eq!(
        requests.iter().map(|request| request.events.len()).collect::<Vec<_>>(),
        [30],
        "a full batch is sent without waiting"
    );
    assert_eq!(requests[0].content_type, "application/cloudevents-batch+json; charset=utf-8");
    assert_eq!(requests[0].events[0]["specversion"], "1.0");
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_single_attempt_each_event_is_sent_alone() {
    let database = Database::new().await;
    let (batches, url, _running) = Batches::start(|event| event["data"] == 3).await;
    let relay = start(&database, json!({"url": url, "batch": {"max": 20}}), json!({"max_attempts": 1})).await;
    publish(&database, 20).await;
    let requests = batches.wait_for(19).await;
    assert!(requests.iter().all(|request| request.events.len() == 1), "{requests:#?}");
    database
        .eventually(
            "select exists (select from outbox.dead_letters) and not exists (select from outbox.owed)",
        )
        .await;
    let dead: Vec<Value> = sqlx::query_scalar("select payload from outbox.dead_letters")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(dead, [json!(3)]);
    relay.stop().await;
}

/// The reports for three events when the receiver answers in this way. It gets the id of the second.
async fn answered(answer: impl Fn(&str) -> Mode) -> Vec<(&'static str, Option<Reason>, bool)> {
    let mut registry = pgoutbox::sinks::registry();
    registry.add(webhook());
    let receiver = Hostile::start(Mode::Hang).await;
    let ids = deliveries(&registry, "webhook", json!({"url": receiver.url("/"), "batch": {}}), 3);
    let second = ids[1].event.id.to_string();
    let receiver = Hostile::start(answer(&second)).await;
    let config = json!({"url": receiver.url("/"), "batch": {}, "timeout": "3s", "dead_letter_on": [422]});
    let mut deliveries = deliveries(&registry, "webhook", config, 3);
    for (delivery, named) in deliveries.iter_mut().zip(ids.outgoing) {
        delivery.event = named.event;
    }
    let reports = deliveries.outlet.send(&deliveries).await;
    let ambiguous: Vec<_> = reports.iter().map(|report| report.ambiguous).collect();
    reasons(&reports)
        .into_iter()
        .zip(ambiguous)
        .map(|((outcome, reason), ambiguous)| (outcome, reason, ambiguous))
        .collect()
}

fn ok(body: impl Into<Vec<u8>>) -> Mode {
    Mode::Status(200, vec![], body.into())
}

const DELIVERED: (&str, Option<Reason>, bool) = ("delivered", None, false);
const NOT_ACKNOWLEDGED: (&str, Option<Reason>, bool) = ("retry", Some(Reason::NotAcknowledged), false);

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_failed_events_is_used_however_slow_or_long_the_answer_is() {
    let one_failed = [DELIVERED, NOT_ACKNOWLEDGED, DELIVERED];
    let list = |id: &str| format!("{{\"ok\": 2, \"failed\": [\"{id}\"]}}");
    assert_eq!(answered(|id| ok(list(id))).await, one_failed);
    assert_eq!(answered(|id| ok(list(&id.to_uppercase()))).await, one_failed);
    assert_eq!(answered(|id| Mode::SlowBody(list(id).into_bytes())).await, one_failed);
    assert_eq!(
        answered(|id| ok(format!("{{\"why\": \"{}\", \"failed\": [\"{id}\"]}}", "x".repeat(500_000)))).await,
        one_failed
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_off_or_lists_unknown_events_acknowledges_nothing() {
    let unclear = [("retry", Some(Reason::BrokenAnswer), true); 3];
    assert_eq!(answered(|_| Mode::CloseMidAnswer(200)).await, unclear);
    assert_eq!(answered(|_| Mode::EndlessBody(200)).await, unclear);
    assert_eq!(answered(|_| Mode::DripBody(200)).await, [("retry", Some(Reason::Timeout), true); 3]);
    for body in ["{\"fai", "{\"failed\": \"all\"}", "{\"failed\": [7]}", "{\"failed\": [\"order-7\"]}"] {
        assert_eq!(answered(|_| ok(body)).await, unclear, "{body}");
    }
    let unknown = uuid::Uuid::now_v7();
    assert_eq!(answered(|id| ok(format!("{{\"failed\": [\"{id}\", \"{unknown}\"]}}"))).await, unclear);
    for body in ["", "ok", "[]", "null", "{}", "{\"accepted\": 3}", "{\"failed\": []}", "{\"failed\": null}"]
    {
        assert_eq!(answered(|_| ok(body)).await, [DELIVERED; 3], "{body}");
    }
}

/// An answer with a header.
fn with(name: &'static str, value: &str, body: impl Into<Vec<u8>>) -> Mode {
    Mode::Status(200, vec![(name, value.to_owned())], body.into())
}

fn utf_16(text: &str) -> Vec<u8> {
    std::iter::once(0xfeff).chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_cannot_be_read_acknowledges_nothing() {
    let unclear = [("retry", Some(Reason::BrokenAnswer), true); 3];
    let list = |id: &str| format!("{{\"failed\": [\"{id}\"]}}");
    let gzip = |id: &str| [b"\x1f\x8b\x08\0\0\0\0\0\0\x03".as_slice(), list(id).as_bytes()].concat();
    assert_eq!(answered(|id| with("content-encoding", "gzip", gzip(id))).await, unclear);
    assert_eq!(answered(|id| with("content-encoding", "br", list(id))).await, unclear);
    assert_eq!(answered(|id| ok(gzip(id))).await, unclear, "without the header");
    assert_eq!(answered(|id| ok(utf_16(&list(id)))).await, unclear);
    assert_eq!(answered(|id| with("content-type", "text/json; charset=\"UTF-16\"", list(id))).await, unclear);
    assert_eq!(
        answered(|id| with("content-type", "application/json;charset=ibm037", list(id))).await,
        unclear
    );
    assert_eq!(answered(|id| Mode::Status(206, vec![], id[..0].into())).await, unclear, "a part");
    for wrong in [
        "[{\"failed\": [\"ID\"]}]",
        "[\"ok\", \"no\", \"ok\"]",
        "{\"result\": {\"failed\": [\"ID\"]}}",
        "{\"Failed\": [\"ID\"]}",
        "{\"batchItemFailures\": [{\"itemIdentifier\": \"7\"}]}",
        "{\"failed\": [\"ID\"], \"failed\": []}",
        "{\"failed\": {\"ID\": \"no credit\"}}",
        "{\"errors\": [{\"id\": \"ID\"}]}",
        "\"{\\\"failed\\\": [\\\"ID\\\"]}\"",
        "{\"ok\": 1}\n{\"failed\": [\"ID\"]}",
        ")]}',\n{\"failed\": [\"ID\"]}",
        "<failed>ID</failed>",
    ] {
        assert_eq!(answered(|id| ok(wrong.replace("ID", id))).await, unclear, "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_read_after_a_byte_order_mark_and_in_any_charset_that_has_ascii() {
    let one_failed = [DELIVERED, NOT_ACKNOWLEDGED, DELIVERED];
    let list = |id: &str| format!("\u{feff}{{\"failed\": [\"{id}\"]}}");
    assert_eq!(answered(|id| ok(list(id))).await, one_failed);
    assert_eq!(answered(|id| with("content-encoding", "identity", list(id))).await, one_failed);
    assert_eq!(answered(|id| with("content-type", "text/json; charset=UTF-8", list(id))).await, one_failed);
    let latin = |id: &str| [b"{\"why\": \"re\xe7u\", \"failed\": [\"", id.as_bytes(), b"\"]}"].concat();
    assert_eq!(
        answered(|id| with("content-type", "text/json; charset=iso-8859-1", latin(id))).await,
        one_failed
    );
    assert_eq!(answered(|id| Mode::Status(207, vec![], list(id).into())).await, one_failed);
    assert_eq!(answered(|_| with("content-encoding", "gzip", "")).await, [DELIVERED; 3], "nothing to read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_final_answer_to_several_events_is_final_for_none_of_them() {
    let refused = |_: &str| Mode::Status(422, vec![], vec![]);
    assert_eq!(answered(refused).await, [("retry", Some(Reason::ClientError), false); 3]);
    let mut registry = pgoutbox::sinks::registry();
    registry.add(webhook());
    let receiver = Hostile::start(refused("")).await;
    let config = json!({"url": receiver.url("/"), "batch": {}, "dead_letter_on": [422]});
    let deliveries = deliveries(&registry, "webhook", config, 1);
    let reports = deliveries.outlet.send(&deliveries).await;
    assert_eq!(reasons(&reports), [("rejected", Some(Reason::ClientError))]);
}
