//! Pages: each row once, also while rows are added.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Api;
use crate::support::Database;

/// Rows of a list by what identifies them, and how often each was seen; `between` runs after each page.
async fn read_all(
    api: &Api,
    path: &str,
    name: impl Fn(&Value) -> String,
    between: impl AsyncFn(),
) -> BTreeMap<String, usize> {
    let (mut seen, mut cursor) = (BTreeMap::new(), String::new());
    for _ in 0..100 {
        let page = api.get(&format!("{path}limit=3{cursor}")).await.is(200);
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 3);
        for item in items {
            *seen.entry(name(item)).or_insert(0) += 1;
        }
        let Some(next) = page["next"].as_str() else { return seen };
        cursor = format!("&cursor={next}");
        between().await;
    }
    panic!("{path} has no end");
}

fn field(name: &'static str) -> impl Fn(&Value) -> String {
    move |row: &Value| row[name].to_string()
}

#[tokio::test]
async fn pages_have_each_row_once_while_rows_are_added() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('s' || n, array['shop.**'], 'recorder') from generate_series(1, 8) as n; \
             select outbox.publish('shop.sold', '1', key => n::text) from generate_series(1, 8) as n; \
             insert into outbox.deliveries (subscription_id, due_at, position, created_at, attempt) \
             select s.id, now() + interval '1 hour', e.position, e.created_at, 1 \
               from outbox.events as e, outbox.subscriptions as s where s.name in ('s1', 's2'); \
             insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, position, \
                                              created_at, topic, payload, headers, priority, died_at) \
             select 1, 's1', 'timeout', 12, id, position, created_at, topic, payload, headers, priority, \
                    date_trunc('minute', now()) \
               from outbox.events; \
             insert into outbox.attempts (at, subscription_id, position, event_id, attempt, duration, outcome, relay) \
             select date_trunc('minute', now()), s.id, e.position, e.id, 1, '1s', 'delivered', 'r' \
               from outbox.events as e, outbox.subscriptions as s where s.name in ('s1', 's2'); \
             insert into outbox.organization_limits (organization, rate) \
             select 'o' || n, '1/s' from generate_series(1, 8) as n; \
             select outbox.replay('s1', now() - interval '1 day') from generate_series(1, 8)",
        )
        .await;
    let api = Api::of(&database).await;
    // Each list: what identifies a row, how many there are at the start, and what adds one.
    let pair = |row: &Value| format!("{} {}", row["subscription"], row["event_id"]);
    let add = async |sql: &'static str| database.execute(sql).await;
    let none = async || {};
    let seen = read_all(&api, "/v1/events?", field("event_id"), async || {
        add("select outbox.publish('shop.sold', '2')").await
    })
    .await;
    assert_eq!((seen.len(), seen.values().max()), (8, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/deliveries?", pair, async || {
        // As a retry does.
        add("update outbox.deliveries set due_at = due_at - interval '1 minute' where id % 2 = 0").await
    })
    .await;
    assert_eq!((seen.len(), seen.values().max()), (16, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/dead-letters?", field("id"), async || {
        add("insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, position, \
                                              created_at, topic, payload, headers, priority) \
             values (1, 's1', 'timeout', 1, 0, now(), 'a.b', '1', '{}', 0)")
        .await
    })
    .await;
    assert_eq!((seen.len(), seen.values().max()), (8, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/attempts?", pair, none).await;
    assert_eq!((seen.len(), seen.values().max()), (16, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/subscriptions?", field("name"), async || {
        add("select outbox.unsubscribe('s8')").await
    })
    .await;
    assert_eq!((seen.len(), seen.values().max()), (7, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/organizations/limits?", field("organization"), none).await;
    assert_eq!((seen.len(), seen.values().max()), (8, Some(&1)), "{seen:?}");
    let seen = read_all(&api, "/v1/replays?", field("id"), none).await;
    assert_eq!((seen.len(), seen.values().max()), (8, Some(&1)), "{seen:?}");
    let all = database.count("select count(*) from outbox.audit").await;
    let seen =
        read_all(&api, "/v1/audit?", field("id"), async || add("select outbox.pause('s2')").await).await;
    assert_eq!((seen.len() as i64, seen.values().max()), (all, Some(&1)), "{seen:?}");
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_filter_that_finds_nothing_among_a_hundred_thousand_events_goes_on_at_the_next_page() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.publish('shop.rare', '1'); \
             insert into outbox.events (topic, payload) select 'shop.sold', '1' from generate_series(1, 100000)",
        )
        .await;
    let api = Api::of(&database).await;
    let first = api.get("/v1/events?topic=shop.rare").await.is(200);
    assert_eq!(first["items"], json!([]));
    let next = first["next"].as_str().expect("there is more of the log");
    let second = api.get(&format!("/v1/events?topic=shop.rare&cursor={next}")).await.is(200);
    assert_eq!((second["items"].as_array().unwrap().len(), &second["next"]), (1, &Value::Null));
    api.close().await;
    database.drop().await;
}

#[tokio::test]
async fn the_size_of_a_page_is_stated_and_kept() {
    let database = Database::new().await;
    database.execute("select outbox.publish('a.b', '1') from generate_series(1, 1100)").await;
    let api = Api::of(&database).await;
    let count = async |query: &str| {
        let page = api.get(&format!("/v1/events{query}")).await.is(200);
        page["items"].as_array().unwrap().len()
    };
    assert_eq!((count("").await, count("?limit=1").await, count("?limit=1000").await), (100, 1, 1000));
    for limit in ["0", "-1", "1001", "many", ""] {
        assert_eq!(
            api.get(&format!("/v1/events?limit={limit}")).await.problem(400).1,
            Some("limit"),
            "{limit}"
        );
    }
    let page = api.get("/v1/events?limit=1").await.is(200);
    let cursor = page["next"].as_str().unwrap();
    for wrong in [format!("/v1/audit?cursor={cursor}"), "/v1/events?cursor=x".to_owned()] {
        assert_eq!(api.get(&wrong).await.problem(400), ("bad-request", Some("cursor")), "{wrong}");
    }
    api.close().await;
    database.drop().await;
}
