//! What commands show: people get tables, fields and local times, programs one kind of JSON.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

use chrono::{DateTime, Utc};
use http::HeaderMap;
use pgoutbox::{
    delivery::{Outcome, Reason},
    sinks::webhook::sign,
};
use serde_json::{Value, json};

use crate::support::{Database, Recorder, RelayBox};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// One dead letter and one delivery that waits, each of an event of its own.
async fn fill(database: &Database) {
    database
        .execute(
            "select outbox.subscribe('shop', array['shop.**'], 'recorder', \
                                     retry => '{\"schedule\": [\"1h\"]}')",
        )
        .await;
    let recorder = Recorder::answering(|seen| match seen.topic.as_str() {
        "shop.lost" => Outcome::Rejected { reason: Reason::Refused },
        _ => Outcome::Retry { reason: Reason::Timeout, after: None },
    });
    let relay = RelayBox::start(database, &recorder).await;
    database
        .execute(
            "select outbox.publish('shop.lost', '{\"total\": 12345678901234567890.10}', key => 'o-1', \
                                   headers => '{\"x\": \"y\"}', organization => 'acme'), \
                    outbox.publish('shop.late', '1', key => 'o-2')",
        )
        .await;
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    database.eventually("select count(*) = 1 from outbox.deliveries where attempt = 1").await;
    assert!(relay.stop().await.complete);
}

async fn event(database: &Database, topic: &str) -> String {
    sqlx::query_scalar("select id::text from outbox.events where topic = $1")
        .bind(topic)
        .fetch_one(&mut database.connection().await)
        .await
        .unwrap()
}

/// The fields of an object in the order of its text, and those that are times.
fn fields(line: &str) -> Vec<String> {
    let values: BTreeMap<String, Value> = serde_json::from_str(line).unwrap();
    let mut names: Vec<String> = values.keys().cloned().collect();
    names.sort_by_key(|name| line.find(&format!("\"{name}\":")).unwrap());
    for (name, value) in values {
        if name.ends_with("_at") || name == "at" {
            let Some(time) = value.as_str() else { continue };
            assert!(time.ends_with('Z') && time.parse::<DateTime<Utc>>().is_ok(), "{name}: {time}");
        }
    }
    names
}

#[tokio::test]
async fn all_json_has_its_fields_in_one_order_and_times_in_utc() {
    let database = Database::new().await;
    fill(&database).await;
    database
        .execute("select outbox.subscribe('bad', array['x'], 'webhook', '{\"url\": \"http://a.example\"}')")
        .await;
    database.execute("select outbox.define_event_type('shop.*', 1, '{\"type\": \"string\"}')").await;
    database.execute("select outbox.replay('shop', now() - interval '1 hour')").await;
    let lost = event(&database, "shop.lost").await;
    let id = database.count("select id from outbox.dead_letters").await.to_string();
    let address = crate::gateway::free_address();
    let gateway = crate::gateway::start(&database, address, &[]).await;
    let url = format!("http://{address}");
    let mut orders: BTreeMap<(String, String), String> = BTreeMap::new();
    for arguments in [
        &["status"][..],
        &["subscriptions", "list"],
        &["subscriptions", "show", "shop"],
        &["subscriptions", "test", "shop"],
        &["subscriptions", "pause", "shop"],
        &["subscriptions", "create", "more", "--topics", "*", "--sink", "stdout"],
        &["subscriptions", "delete", "more"],
        &["types", "list"],
        &["types", "check"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--grouped"],
        &["dead-letters", "show", &id],
        &["dead-letters", "redrive", "--dry-run"],
        &["dead-letters", "redrive", &id],
        &["deliveries", "list"],
        &["deliveries", "retry", "--dry-run"],
        &["deliveries", "cancel", "--all", "--yes"],
        &["events", "list"],
        &["events", "show", &lost],
        &["attempts"],
        &["audit"],
        &["publish", "shop.more"],
        &["publish", "shop.more", "--wait", "10ms"],
        &["trace", &lost],
        &["replay", "shop", "--since", "1h", "--dry-run"],
        &["replay", "shop", "--since", "1h", "--no-wait"],
        &["replays", "list"],
        &["tail", "**", "--since", "1h", "-n", "1", "--url", &url],
        &["check"],
    ] {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
        let output = database.pgoutbox(&arguments);
        let said = text(&output.stdout);
        assert!(!said.is_empty(), "{arguments:?}: {output:?}");
        for line in said.lines() {
            let names = fields(line);
            for (n, first) in names.iter().enumerate() {
                for second in &names[n + 1..] {
                    let pair = (first.clone(), second.clone());
                    orders.entry(pair).or_insert_with(|| format!("{arguments:?}"));
                }
            }
        }
    }
    let contradictions: BTreeSet<String> = orders
        .iter()
        .filter_map(|((first, second), here)| {
            let there = orders.get(&(second.clone(), first.clone()))?;
            (first < second).then(|| format!("{first} and {second}: {here} and {there}"))
        })
        .collect();
    assert!(contradictions.is_empty(), "{contradictions:#?}");
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn people_see_the_time_of_their_machine_and_utc_when_they_ask_for_it() {
    let database = Database::new().await;
    fill(&database).await;
    database.execute("update outbox.dead_letters set died_at = '2026-01-31 23:30:05.6Z'").await;
    let zone = [("TZ", "Asia/Tokyo")];
    let list = |more: &[&str]| {
        let arguments: Vec<&str> = ["dead-letters", "list"].iter().chain(more).copied().collect();
        text(&database.pgoutbox_with(&zone, &arguments).stdout)
    };
    assert!(list(&[]).contains(" 2026-02-01 08:30:05  shop"), "{}", list(&[]));
    assert!(list(&["--utc"]).contains(" 2026-01-31 23:30:05Z  shop"), "{}", list(&["--utc"]));
    assert!(list(&["--json"]).contains("\"2026-01-31T23:30:05.600Z\""), "{}", list(&["--json"]));
    database.drop().await;
}

#[tokio::test]
async fn a_dead_letter_and_an_event_are_shown_as_lines_with_the_payload_as_it_is() {
    let database = Database::new().await;
    fill(&database).await;
    let id = database.count("select id from outbox.dead_letters").await.to_string();
    let lost = event(&database, "shop.lost").await;
    for arguments in [&["dead-letters", "show", &id][..], &["events", "show", &lost]] {
        let said = text(&database.pgoutbox(arguments).stdout);
        let lines: BTreeMap<&str, &str> =
            said.lines().map(|line| line.split_once("  ").unwrap()).map(|(a, b)| (a, b.trim())).collect();
        assert_eq!(lines["topic"], "shop.lost", "{said}");
        assert_eq!(lines["organization"], "acme");
        assert_eq!(lines["payload"], "{\"total\": 12345678901234567890.10}");
        assert_eq!(lines["headers"], "{\"x\": \"y\"}");
        assert_eq!(lines.get("reason").copied(), (arguments[0] == "dead-letters").then_some("refused"));
        assert!(!lines.contains_key("user"), "what is not there takes no line: {said}");
    }
    let missing = database.pgoutbox(&["events", "show", "00000000-0000-0000-0000-000000000000"]);
    assert_eq!(missing.status.code(), Some(1));
    database.drop().await;
}

#[tokio::test]
async fn dead_letters_are_grouped_by_what_went_wrong_with_their_count_and_the_newest() {
    let database = Database::new().await;
    fill(&database).await;
    database
        .execute(
            "insert into outbox.dead_letters (subscription_id, subscription, reason, status, answer, attempts, \
                                              position, created_at, topic, payload, headers, priority) \
             select 0, 'other', 'server_error', 500, 'oh', 1, n, now(), 'a.b', '1', '{}', 0 \
               from generate_series(1, 40) as n",
        )
        .await;
    let newest = database.count("select max(id) from outbox.dead_letters").await.to_string();
    let said = text(&database.pgoutbox(&["dlq", "list", "--grouped"]).stdout);
    let rows: Vec<Vec<&str>> = said.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(
        (rows.len(), &rows[0][..4], rows[0][6], rows[0][7]),
        (2, &["40", "other", "server_error", "500"][..], newest.as_str(), "oh"),
        "{said}"
    );
    assert_eq!(rows[1][..3], ["1", "shop", "refused"], "{said}");
    let filtered = text(&database.pgoutbox(&["dlq", "list", "--grouped", "--error-like", "5__"]).stdout);
    assert_eq!(filtered.lines().count(), 2, "{filtered}");
    database.drop().await;
}

#[tokio::test]
async fn events_and_attempts_are_found_by_what_is_known_of_them() {
    let database = Database::new().await;
    fill(&database).await;
    // An id of a publisher says nothing of the time.
    let own = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    database.execute(format!("select outbox.publish('other.thing', '{{}}', id => '{own}')")).await;
    let events = |more: &[&str]| {
        let arguments: Vec<&str> = ["events", "list", "--json"].iter().chain(more).copied().collect();
        let said = text(&database.pgoutbox(&arguments).stdout);
        said.lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["topic"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(events(&[]), ["other.thing", "shop.late", "shop.lost"]);
    assert_eq!(events(&["--limit", "1"]), ["other.thing"]);
    assert_eq!(events(&["--topic", "shop.*"]), ["shop.late", "shop.lost"]);
    assert_eq!(events(&["--key", "o-2"]), ["shop.late"]);
    assert_eq!(events(&["--organization", "acme"]), ["shop.lost"]);
    assert_eq!(events(&["--since", "2100-01-01T00:00:00Z"]), [""; 0]);
    let shown = text(&database.pgoutbox(&["events", "show", own, "--json"]).stdout);
    assert!(shown.contains("\"topic\":\"other.thing\""), "{shown}");

    let lost = event(&database, "shop.lost").await;
    let attempts = |more: &[&str]| {
        let arguments: Vec<&str> = ["attempts"].iter().chain(more).copied().collect();
        text(&database.pgoutbox(&arguments).stdout)
    };
    assert!(attempts(&[]).contains("timeout") && attempts(&[]).contains("refused"), "{}", attempts(&[]));
    assert_eq!(attempts(&["--event", &lost]).lines().count(), 2, "{}", attempts(&["--event", &lost]));
    assert!(attempts(&["--error-like", "time%"]).contains("timeout"));
    assert!(!attempts(&["--error-like", "time%"]).contains("refused"));
    assert_eq!(attempts(&["--subscription", "other"]), "");
    database.drop().await;
}

#[tokio::test]
async fn a_trial_shows_the_request_with_a_signature_that_verifies_and_without_secrets() {
    let database = Database::new().await;
    let config = json!({
        "url": "https://hooks.example.com/in?a=b", "secret": "env:PGOUTBOX_SECRET_SHOP",
        "headers": {"authorization": "env:PGOUTBOX_SECRET_TOKEN", "x-shop": "7"},
    });
    database
        .execute(format!(
            "select outbox.subscribe('shop', array['shop.**'], 'webhook', '{config}'); \
             select outbox.publish('shop.sold', '{{\"a\": 1.50}}'); select outbox.publish('else', '2')"
        ))
        .await;
    let secrets = [("PGOUTBOX_SECRET_SHOP", SECRET), ("PGOUTBOX_SECRET_TOKEN", "Bearer very-secret-token")];
    let output = database.pgoutbox_with(&secrets, &["subscriptions", "test", "shop"]);
    let said = text(&output.stdout);
    assert!(!said.contains("very-secret"), "{said}");
    let request = said.split_once("\n\nPOST ").unwrap().1;
    let (head, body) = request.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    assert_eq!(lines.next(), Some("https://hooks.example.com/in?a=b"));
    let headers: HeaderMap = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap()))
        .collect();
    assert_eq!(
        (&headers["x-shop"], &headers["content-type"]),
        (&"7".parse().unwrap(), &"application/json".parse().unwrap())
    );
    let body = body.trim_end_matches('\n');
    assert!(body.contains("\"data\":{\"a\": 1.50}"), "{body}");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let key = sign::Key::parse(&SECRET.into()).unwrap();
    assert!(sign::verify(&[key], &headers, body.as_bytes(), now), "{said}");
    let rows = text(&database.pgoutbox(&["subscriptions", "test", "shop", "--json"]).stdout);
    let row: Value = serde_json::from_str(rows.lines().nth(1).unwrap()).unwrap();
    assert_eq!(row["body"], Value::Null, "without its secret it has no request: {rows}");
    let rows = text(&database.pgoutbox_with(&secrets, &["subscriptions", "test", "shop", "--json"]).stdout);
    let row: Value = serde_json::from_str(rows.lines().nth(1).unwrap()).unwrap();
    assert_eq!(row["request"][0], "POST https://hooks.example.com/in?a=b", "{rows}");
    database.drop().await;
}
