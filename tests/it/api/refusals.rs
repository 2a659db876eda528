//! What is refused, and how it is said.

use pgoutbox::http::Settings;
use serde_json::{Value, json};

use super::{Api, login};
use crate::support::Database;

#[tokio::test]
async fn what_is_wrong_is_named_with_its_field() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let api = Api::of(&database).await;
    let sub = |more: Value| {
        let mut body = json!({ "name": "a", "topics": ["a.b"], "sink": "recorder" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let (bad, invalid) = ((400, "bad-request"), (422, "invalid"));
    for (path, body, (status, code), field) in [
        ("/v1/events", json!({"topic": "shop..sold"}), invalid, "topic"),
        ("/v1/events", json!({"topic": "a.b", "payload": "\u{0}"}), invalid, ""),
        ("/v1/events", json!({"topic": "a.b", "headers": {"A B": "c"}}), invalid, "headers"),
        ("/v1/events", json!({"topic": "a.b", "priority": 1001}), invalid, "priority"),
        ("/v1/events", json!({"payload": 1}), bad, "topic"),
        ("/v1/events", json!({"topic": "a.b", "kee": 1}), bad, "kee"),
        ("/v1/events", json!({"topic": "a.b", "id": "7"}), bad, "id"),
        ("/v1/events", json!({"topic": "a.b", "headers": {"a": 1}}), bad, "headers.a"),
        ("/v1/events", json!([]), bad, ""),
        ("/v1/subscriptions", sub(json!({"sink": "nowhere"})), invalid, "sink"),
        ("/v1/subscriptions", sub(json!({"topics": ["a..b"]})), invalid, "topics"),
        ("/v1/subscriptions", sub(json!({"filter": "1 +"})), invalid, "filter"),
        ("/v1/subscriptions", sub(json!({"ordering": "topic"})), invalid, "ordering"),
        ("/v1/subscriptions", sub(json!({"topics": "a.b"})), bad, "topics"),
        ("/v1/deliveries/retry", json!({}), invalid, "all"),
        ("/v1/deliveries/cancel", json!({"all": true, "topic": "a.b"}), invalid, "all"),
        ("/v1/dead-letters/discard", json!({}), invalid, "all"),
        ("/v1/dead-letters/redrive", json!({"all": true, "limit": 0}), invalid, "limit"),
        ("/v1/dead-letters/redrive", json!({"topic": "a..b"}), invalid, "topic"),
        ("/v1/dead-letters/redrive", json!({"subscription": "nobody"}), invalid, ""),
        ("/v1/replays", json!({"subscription": "shop"}), invalid, "since"),
        (
            "/v1/replays",
            json!({"subscription": "no", "since": "2026-01-01T00:00:00Z", "dry_run": true}),
            invalid,
            "subscription",
        ),
        (
            "/v1/replays",
            json!({"subscription": "shop", "since": "2026-01-01T00:00:00Z", "rate": "fast"}),
            invalid,
            "rate",
        ),
        ("/v1/replays", json!({"subscription": "shop", "since": "yesterday"}), bad, "since"),
    ] {
        let refused = api.post(path, body.clone()).await;
        let found = refused.problem(status);
        assert_eq!(
            (found.0, found.1.unwrap_or_default()),
            (code, field),
            "{path} {body}: {:#}",
            refused.body
        );
    }
    for (path, status, field) in [
        ("/v1/events?topc=a", 400, "topc"),
        ("/v1/events?topic=a..b", 422, "topic"),
        ("/v1/events?since=yesterday", 400, "since"),
        ("/v1/attempts?event=7", 400, "event"),
        ("/v1/events/7", 400, ""),
        ("/v1/dead-letters/seven", 400, ""),
        ("/v1/events/00000000-0000-0000-0000-000000000000/wait?timeout=9s", 400, "timeout"),
        ("/v1/events/00000000-0000-0000-0000-000000000000/wait?timeout=0s", 400, "timeout"),
    ] {
        let refused = api.get(path).await;
        assert_eq!(refused.problem(status).1.unwrap_or_default(), field, "{path}: {:#}", refused.body);
    }
    let refused = api.put("/v1/subscriptions/a", json!({"name": "b", "topics": [], "sink": "stdout"})).await;
    assert_eq!(refused.problem(422), ("invalid", Some("name")));
    assert_eq!(database.count("select count(*) from outbox.subscriptions").await, 1);
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn what_is_not_there_is_404() {
    let database = Database::new().await;
    database.execute("select outbox.publish('a.b', '1')").await;
    let api = Api::of(&database).await;
    let none = "00000000-0000-0000-0000-000000000000";
    for path in [
        "/v1/nowhere",
        "/v1/subscriptions/nobody",
        "/v1/dead-letters/7",
        "/v1/replays/7",
        &format!("/v1/events/{none}"),
        &format!("/v1/events/{none}/trace"),
        &format!("/v1/events/{none}/wait?timeout=1s"),
    ] {
        let missing = api.get(path).await;
        assert_eq!(missing.problem(404).0, "not-found", "{path}");
    }
    for path in ["/v1/subscriptions/nobody/pause", "/v1/subscriptions/nobody/resume", "/v1/replays/7/cancel"]
    {
        let missing = api.call(path).await;
        assert_eq!(missing.problem(404).0, "not-found", "{path}");
    }
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_body_must_be_json_and_within_its_limit() {
    let database = Database::new().await;
    let api = Api::of(&database).await;
    let spec = r#"{"topics": ["a.b"], "sink": "stdout"}"#;
    for (kind, status) in [
        (Some("text/plain"), 415),
        (Some("application/x-www-form-urlencoded"), 415),
        (None, 415),
        (Some("application/json; charset=utf-8"), 201),
    ] {
        let mut request = api.request("PUT", "/v1/subscriptions/a").body(spec);
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let answer = api.send("PUT", "/v1/subscriptions/a", request).await;
        assert_eq!(answer.status, status, "{kind:?}: {:#}", answer.body);
    }
    let padded = |bytes: usize| format!(r#"{{"topic": "a.b", "payload": "{}"}}"#, "x".repeat(bytes));
    api.with_body("POST", "/v1/events", padded(250 * 1024)).await.is(201);
    let refused = api.with_body("POST", "/v1/events", padded(300 * 1024)).await;
    assert_eq!(refused.problem(422).0, "invalid", "the database has its own limit");
    let refused = api.with_body("POST", "/v1/events", padded(1024 * 1024)).await;
    assert_eq!(refused.problem(413).0, "too-large");
    let long = format!(r#"{{"topics": ["a.b"], "sink": "stdout", "filter": "{}"}}"#, "x".repeat(65 * 1024));
    assert_eq!(api.with_body("PUT", "/v1/subscriptions/a", long).await.problem(413).0, "too-large");
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_login_without_rights_is_told_which_grant_it_needs_and_nothing_is_changed() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    // What a relay needs is not enough to operate.
    let api = Api::with(database.relay_options.clone()).await;
    for path in ["/v1/subscriptions", "/v1/audit", "/v1/events", "/v1/attempts", "/v1/status", "/v1/replays"]
    {
        api.get(path).await.is(200);
    }
    let hint = |reply: &super::Reply| reply.body["hint"].as_str().unwrap_or_default().to_owned();
    let path = "/v1/subscriptions/shop/pause";
    let refused = api.call(path).await;
    assert_eq!(refused.problem(403).0, "no-rights");
    assert!(hint(&refused).contains("grant outbox_admin to"), "{:#}", refused.body);
    let refused = api.post("/v1/events", json!({"topic": "a.b"})).await;
    assert_eq!(refused.problem(403).0, "no-rights");
    assert!(hint(&refused).contains("grant outbox_publisher to"), "{:#}", refused.body);
    assert_eq!(api.get("/v1/dead-letters").await.problem(403).0, "no-rights");
    assert_eq!(database.count("select count(*) from outbox.subscriptions where active").await, 1);
    api.close().await;
    // A stranger to the outbox.
    let stranger = login(&database, "pg_read_all_stats").await;
    let api = Api::with(database.options.clone().username(&stranger)).await;
    let refused = api.get("/v1/status").await;
    assert_eq!(refused.problem(403).0, "no-rights");
    assert!(hint(&refused).contains("grant outbox_monitor to"), "{:#}", refused.body);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_database_that_is_away_or_not_migrated_is_503_and_no_secret_is_said() {
    let database = Database::empty().await;
    let api = Api::with(database.options.clone()).await;
    let refused = api.get("/v1/status").await;
    assert_eq!(refused.problem(503).0, "not-migrated");
    assert!(refused.body["detail"].as_str().unwrap().contains("pgoutbox migrate"), "{:#}", refused.body);
    api.close().await;
    // Nobody listens there.
    let away =
        database.options.clone().host("127.0.0.1").port(1).password("canary-password").username("canary");
    let api = Api::with(away).await;
    let refused = api.get("/v1/status").await;
    assert_eq!(refused.problem(503).0, "unavailable");
    assert_eq!(refused.headers["retry-after"], "5");
    assert!(!refused.body.to_string().contains("canary"), "{:#}", refused.body);
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_missing_token_and_pages_of_another_origin_are_refused_before_the_database_is_asked() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['shop.**'], 'recorder')").await;
    let settings = Settings { token: Some("0123-token".into()), ..Settings::default() };
    let api = Api::serving(database.options.clone(), false, settings).await;
    let path = "/v1/subscriptions/shop";
    let delete = || api.request("DELETE", path);
    for (request, status) in [
        (delete(), 401),
        (delete().bearer_auth("0123-toke"), 401),
        (delete().bearer_auth("0123-token").header("origin", "https://evil.example"), 403),
        (delete().bearer_auth("0123-token").header("host", "evil.example"), 403),
    ] {
        assert_eq!(api.send("DELETE", path, request).await.status, status);
    }
    assert_eq!(api.send("GET", "/v1/openapi.json", api.request("GET", "/v1/openapi.json")).await.status, 401);
    let asked = "select count(*) from pg_stat_activity \
                  where datname = current_database() and application_name like 'pgoutbox/%/api'";
    assert_eq!(database.count(asked).await, 0);
    api.send("DELETE", path, delete().bearer_auth("0123-token")).await.is(200);
    api.close().await;
    database.drop().await;
}
