//! What the API does, resource by resource.

use pgoutbox::delivery::{Outcome, Reason};
use serde_json::{Value, json};
use uuid::Uuid;

use super::Api;
use crate::support::{Database, Recorder, RelayBox};

/// Operations that each test below sees succeed.
pub(super) const COVERED: [&[&str]; 6] = [SUBSCRIPTIONS, EVENTS, WAITING, REPLAYS, STATE, TYPES];

const SUBSCRIPTIONS: &[&str] = &[
    "GET /v1/subscriptions",
    "POST /v1/subscriptions",
    "GET /v1/subscriptions/{name}",
    "PUT /v1/subscriptions/{name}",
    "DELETE /v1/subscriptions/{name}",
    "POST /v1/subscriptions/{name}/pause",
    "POST /v1/subscriptions/{name}/resume",
];
const EVENTS: &[&str] = &[
    "GET /v1/events",
    "POST /v1/events",
    "GET /v1/events/{id}",
    "GET /v1/events/{id}/trace",
    "GET /v1/events/{id}/wait",
    "GET /v1/attempts",
];
const WAITING: &[&str] = &[
    "GET /v1/deliveries",
    "POST /v1/deliveries/retry",
    "POST /v1/deliveries/cancel",
    "GET /v1/dead-letters",
    "GET /v1/dead-letters/groups",
    "GET /v1/dead-letters/{id}",
    "POST /v1/dead-letters/redrive",
    "POST /v1/dead-letters/discard",
];
const REPLAYS: &[&str] = &[
    "GET /v1/replays",
    "POST /v1/replays",
    "GET /v1/replays/{id}",
    "POST /v1/replays/{id}/pause",
    "POST /v1/replays/{id}/resume",
    "POST /v1/replays/{id}/cancel",
];
const STATE: &[&str] = &[
    "GET /v1/status",
    "GET /v1/audit",
    "GET /v1/organizations/limits",
    "PUT /v1/organizations/{organization}/limit",
    "DELETE /v1/organizations/{organization}/limit",
];

const TYPES: &[&str] = &["GET /v1/event-types", "PUT /v1/event-types/{topic}/{version}"];

/// The objects that a command prints with `--json`.
fn printed(database: &Database, arguments: &[&str]) -> Vec<Value> {
    let output = database.pgoutbox(&[arguments, &["--json"]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_subscription_is_created_declared_paused_resumed_and_deleted() {
    let database = Database::new().await;
    let api = Api::of(&database).await;
    let spec = json!({ "name": "shop:a", "topics": ["shop.**"], "sink": "recorder" });
    let made = api.post("/v1/subscriptions", spec.clone()).await;
    assert_eq!(made.headers["location"], "/v1/subscriptions/shop%3Aa");
    assert_eq!(made.is(201)["subscription"], "shop:a");
    assert_eq!(api.post("/v1/subscriptions", spec).await.problem(409), ("conflict", Some("name")));

    let path = "/v1/subscriptions/shop%3Aa";
    let declared = json!({
        "topics": ["shop.*"], "sink": "recorder", "match": {"total": 12345678901234567890_u64},
        "retry": {"max_attempts": 3}, "max_in_flight": 7,
    });
    let row = api.put(path, declared.clone()).await.is(200);
    assert_eq!((&row["topics"], &row["max_in_flight"]), (&json!(["shop.*"]), &json!(7)));
    assert_eq!(api.put(path, declared).await.is(200), row, "the same twice changes nothing");
    assert_eq!(api.get(path).await.is(200), row);
    assert_eq!(printed(&database, &["subscriptions", "show", "shop:a"]), [row], "the same object");

    for (verb, changed) in [("pause", true), ("pause", false), ("resume", true), ("resume", false)] {
        let answer = api.call(&format!("{path}/{verb}")).await.is(200);
        assert_eq!(answer, json!({ "subscription": "shop:a", "changed": changed }), "{verb}");
    }
    let other = json!({ "topics": ["a.b"], "sink": "stdout" });
    assert_eq!(api.put("/v1/subscriptions/b", other).await.is(201)["name"], "b");
    let list = api.get("/v1/subscriptions").await.is(200);
    assert_eq!(list["items"], json!(printed(&database, &["subscriptions", "list"])));
    assert_eq!((list["items"].as_array().unwrap().len(), &list["next"]), (2, &Value::Null));
    api.delete("/v1/subscriptions/b").await.is(200);
    assert_eq!(api.delete("/v1/subscriptions/b").await.problem(404).0, "not-found");
    api.assert_done(SUBSCRIPTIONS);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn an_event_is_published_once_for_its_id_found_traced_and_waited_for() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let api = Api::of(&database).await;
    let relay =
        RelayBox::start(&database, &Recorder::answering(|_| Outcome::Rejected { reason: Reason::Refused }))
            .await;
    let id = Uuid::new_v4();
    let text = format!(
        r#"{{"topic": "shop.sold", "payload": {{"total": 12345678901234567890.10}}, "key": "o-1",
             "headers": {{"x": "y"}}, "organization": "acme", "id": "{id}", "priority": 3, "source": "till",
             "user_id": "u", "schema_version": 2}}"#
    );
    for _ in 0..2 {
        let made = api.with_body("POST", "/v1/events", text.clone()).await;
        assert_eq!(made.headers["location"].to_str().unwrap(), format!("/v1/events/{id}"));
        assert_eq!(made.is(201), json!({ "event_id": id }));
    }
    assert_eq!(database.count("select count(*) from outbox.events").await, 1);
    let payload =
        "select count(*) from outbox.events where payload::text = '{\"total\": 12345678901234567890.10}'";
    assert_eq!(database.count(payload).await, 1, "numbers keep their digits");

    let path = format!("/v1/events/{id}");
    let waited = api.get(&format!("{path}/wait?timeout=8s")).await.is(200);
    assert_eq!(
        (&waited["status"], &waited["subscriptions"][0]["state"]),
        (&json!("failed"), &json!("dead_letter"))
    );
    let whole = api.get(&path).await.is(200);
    assert_eq!(
        (&whole["topic"], &whole["schema_version"], &whole["headers"]["x"]),
        (&json!("shop.sold"), &json!(2), &json!("y"))
    );
    assert_eq!(json!([whole]), json!(printed(&database, &["events", "show", &id.to_string()])));
    let traced = api.get(&format!("{path}/trace")).await.is(200);
    let lines = printed(&database, &["trace", &id.to_string()]);
    assert_eq!((&traced["event"], &traced["subscriptions"]), (&lines[0], &json!(lines[1..])));
    assert_eq!(traced["more"], false);

    database.execute("select outbox.publish('other.thing', '{}', key => 'o-2')").await;
    for (query, found) in [
        ("", 2),
        ("?topic=shop.*", 1),
        ("?key=o-2", 1),
        ("?organization=acme", 1),
        ("?since=2100-01-01T00:00:00Z", 0),
        ("?since=2000-01-01T00:00:00%2B01:00", 2),
    ] {
        let list = api.get(&format!("/v1/events{query}")).await.is(200);
        assert_eq!(list["items"].as_array().unwrap().len(), found, "{query}");
    }
    let list = api.get("/v1/events").await.is(200);
    assert_eq!(list["items"], json!(printed(&database, &["events", "list"])));
    let attempts = api.get(&format!("/v1/attempts?event={id}&error_like=ref%25")).await.is(200);
    assert_eq!(attempts["items"], json!(printed(&database, &["attempts", "--event", &id.to_string()])));
    assert_eq!(attempts["items"][0]["reason"], "refused");
    api.assert_done(EVENTS);
    assert!(relay.stop().await.complete);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn deliveries_and_dead_letters_are_listed_counted_and_changed_as_the_command_line_does() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder', retry => '{\"schedule\": [\"1h\"]}')",
        )
        .await;
    let api = Api::of(&database).await;
    let recorder = Recorder::answering(|seen| match seen.topic.as_str() {
        "shop.lost" => Outcome::Rejected { reason: Reason::Refused },
        _ => Outcome::Retry { reason: Reason::Timeout, after: None },
    });
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .execute(
            "select outbox.publish('shop.lost', '1', key => n::text) from generate_series(1, 3) as n; \
             select outbox.publish('shop.late', '1', key => n::text) from generate_series(1, 3) as n",
        )
        .await;
    database.eventually("select count(*) = 3 from outbox.dead_letters").await;
    database.eventually("select count(*) = 3 from outbox.deliveries where attempt = 1").await;
    assert!(relay.stop().await.complete);

    let waiting = api.get("/v1/deliveries?topic=shop.late").await.is(200);
    assert_eq!(waiting["items"].as_array().unwrap().len(), 3);
    // People see first what is due first; pages are in the order of the log.
    let mut ours = printed(&database, &["deliveries", "list"]);
    ours.sort_by_key(|one| one["key"].to_string());
    assert_eq!(waiting["items"], json!(ours));
    let retry = |more: Value| {
        let mut body = json!({ "subscription": "shop" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.post("/v1/deliveries/retry", body)
    };
    assert_eq!(retry(json!({"dry_run": true})).await.is(200), json!({"would_retry": 3, "matching": 3}));
    assert_eq!(retry(json!({"limit": 2})).await.is(200), json!({"retried": 2, "left": 1}));
    let cancel = json!({"all": true, "dead_letters": true, "limit": 1});
    assert_eq!(api.post("/v1/deliveries/cancel", cancel).await.is(200), json!({"cancelled": 1, "left": 2}));
    let cancel = json!({"topic": "shop.**", "dry_run": true});
    assert_eq!(
        api.post("/v1/deliveries/cancel", cancel).await.is(200),
        json!({"would_cancel": 2, "matching": 2})
    );

    let letters = api.get("/v1/dead-letters?error_like=refused").await.is(200);
    let ours = printed(&database, &["dead-letters", "list", "--error-like", "refused"]);
    assert_eq!((letters["items"].as_array().unwrap().len(), &letters["items"]), (3, &json!(ours)));
    let groups = api.get("/v1/dead-letters/groups").await.is(200);
    assert_eq!(groups["items"], json!(printed(&database, &["dead-letters", "list", "--grouped"])));
    let id = letters["items"][0]["id"].to_string();
    let whole = api.get(&format!("/v1/dead-letters/{id}")).await.is(200);
    assert_eq!(json!([whole]), json!(printed(&database, &["dead-letters", "show", &id])));
    assert_eq!(api.get("/v1/dead-letters/9999").await.problem(404).0, "not-found");
    let redrive = async |body: Value| api.post("/v1/dead-letters/redrive", body).await.is(200);
    let dry = redrive(json!({"error_like": "refused", "dry_run": true})).await;
    assert_eq!(dry, json!({"would_redrive": 3, "matching": 3}));
    let same = printed(&database, &["dead-letters", "redrive", "--error-like", "refused", "--dry-run"]);
    assert_eq!(same, [dry], "the same object");
    let one: i64 = id.parse().unwrap();
    assert_eq!(redrive(json!({"id": one})).await, json!({"redriven": 1, "left": 0}));
    let discard = json!({"error_like": "refused", "until": "2100-01-01T00:00:00Z", "limit": 1});
    assert_eq!(
        api.post("/v1/dead-letters/discard", discard).await.is(200),
        json!({"discarded": 1, "left": 1})
    );
    assert_eq!(database.count("select count(*) from outbox.dead_letters where reason = 'refused'").await, 1);
    api.assert_done(WAITING);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_replay_is_counted_started_paused_resumed_and_cancelled() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder'); \
             select outbox.publish('shop.' || case when n > 2 then 'sold' else 'seen' end, '1') \
               from generate_series(1, 5) as n; \
             select outbox.publish('else.where', '1')",
        )
        .await;
    let api = Api::of(&database).await;
    let order = |more: Value| {
        let mut body = json!({ "subscription": "shop", "since": "2000-01-01T00:00:00Z", "rate": "1/h" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        api.post("/v1/replays", body)
    };
    let counted = order(json!({"dry_run": true, "topic": "shop.sold"})).await.is(200);
    assert_eq!(counted, json!({"would_replay": 3, "seen": 3, "filter_errors": 0}));
    let made = order(json!({})).await;
    let (location, replay) = (made.headers["location"].to_str().unwrap().to_owned(), made.is(201));
    assert_eq!((&replay["state"], &replay["rate"]), (&json!("running"), &json!("1/h")));
    assert_eq!(api.get(&location).await.is(200), replay);
    for (verb, changed, state) in [
        ("pause", true, "paused"),
        ("pause", false, "paused"),
        ("resume", true, "running"),
        ("cancel", true, "cancelled"),
        ("cancel", false, "cancelled"),
    ] {
        let answer = api.call(&format!("{location}/{verb}")).await.is(200);
        assert_eq!(answer, json!({"replay": replay["id"], "changed": changed}), "{verb}");
        assert_eq!(api.get(&location).await.is(200)["state"], state);
    }
    let list = api.get("/v1/replays?subscription=shop").await.is(200);
    assert_eq!(list["items"], json!(printed(&database, &["replays", "list"])));
    api.assert_done(REPLAYS);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn state_audit_and_limits_are_those_of_the_command_line() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let api = Api::of(&database).await;
    let relay = RelayBox::start(&database, &Recorder::answering(|_| Outcome::Delivered)).await;
    let status = api.get("/v1/status").await.is(200);
    assert_eq!(status["subscriptions"], json!(printed(&database, &["status"])));
    assert_eq!((&status["relays"][0]["name"], &status["fenced"]), (&json!("relay"), &Value::Null));
    assert_eq!(api.get("/v1/status?subscription=other").await.is(200)["subscriptions"], json!([]));
    assert!(relay.stop().await.complete);

    let path = "/v1/organizations/acme/limit";
    assert_eq!(api.put(path, json!({"rate": "100/s"})).await.is(200)["changed"], true);
    assert_eq!(api.put(path, json!({"rate": "100/s"})).await.is(200)["changed"], false);
    let limits = api.get("/v1/organizations/limits").await.is(200);
    assert_eq!(limits["items"], json!(printed(&database, &["organizations", "limits"])));
    assert_eq!(limits["items"][0]["rate"], "100/s");
    assert_eq!(api.delete(path).await.is(200)["changed"], true);
    assert_eq!(api.delete(path).await.is(200)["changed"], false);
    let audit = api.get("/v1/audit").await.is(200);
    assert_eq!(audit["items"], json!(printed(&database, &["audit"])));
    let newest = &audit["items"][0];
    assert_eq!(newest["action"], "limited", "{newest}");
    assert!(newest["application"].as_str().unwrap().ends_with("/api"), "{newest}");
    assert_eq!((&newest["actor"], newest["details"].get("by")), (&Value::Null, None), "{newest}");
    api.assert_done(STATE);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn an_event_type_is_declared_and_what_cannot_be_compiled_is_refused() {
    let database = Database::new().await;
    let api = Api::of(&database).await;
    let path = "/v1/event-types/shop.orders.*/2";
    let declared =
        api.put(path, json!({"schema": {"type": "object"}, "description": "orders"})).await.is(200);
    assert_eq!((&declared["topic"], &declared["mode"]), (&json!("shop.orders.*"), &json!("reject")));
    assert_eq!(api.put(path, json!({"mode": "warn"})).await.is(200)["mode"], "warn");
    let list = api.get("/v1/event-types").await.is(200);
    assert_eq!(list["items"], json!(printed(&database, &["types", "list"])));
    assert_eq!((list["items"].as_array().unwrap().len(), &list["items"][0]["schema"]), (1, &json!(true)));
    for (field, wrong) in
        [("schema", json!({"type": "orders"})), ("upcast", json!("1 +")), ("mode", json!("never"))]
    {
        let refused = api.put(path, json!({ field: wrong })).await;
        assert_eq!(refused.problem(422), ("invalid", Some(field)), "{:#}", refused.body);
    }
    api.assert_done(TYPES);
    api.close().await;
    database.drop().await;
}
