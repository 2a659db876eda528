//! Conditions: SQL says what the code that routes says, and `pgoutbox trace` evaluates filters.

use std::time::{Duration, Instant};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use serde_json::json;

use super::{Told, publish, shown};
use crate::support::{Database, Recorder, RelayBox, seed};

#[tokio::test(flavor = "multi_thread")]
async fn the_condition_that_kept_an_event_away_is_named_and_the_part_of_the_filter() {
    let database = Database::new().await;
    for (name, arguments) in [
        ("other-organization", "array['**'], 'recorder', organization => 'umbrella'"),
        ("other-topics", "array['shop.*.created', 'mail.**'], 'recorder'"),
        ("other-keys", "array['**'], 'recorder', keys => array['c-']"),
        ("other-match", "array['**'], 'recorder', match => '{\"paid\": true}'"),
        ("other-filter", "array['**'], 'recorder', filter => 'payload.total > 1 && payload.total > 100'"),
        ("right-filter", "array['**'], 'recorder', filter => 'payload.total > 1'"),
        ("failing-filter", "array['**'], 'recorder', filter => 'payload.nothing.here == 1'"),
        ("wants-it", "array['shop.**'], 'recorder', match => '{\"paid\": false}', keys => array['o-']"),
    ] {
        database.execute(format!("select outbox.subscribe('{name}', {arguments})")).await;
    }
    let event = publish(
        &database,
        "shop.sold",
        r#"{"total": 5, "paid": false}"#,
        ", key => 'o-1', organization => 'acme'",
    )
    .await;
    let conditions = ["organization", "topics", "keys", "match"];
    let check = |told: &Told, wanted: &str, waits_for: &str| {
        for condition in conditions {
            told.both(&format!("other-{condition}"), "unwanted", condition, "");
        }
        told.both("wants-it", wanted, "", waits_for);
        let row = &told.by_command["other-filter"];
        assert_eq!(
            (&row["status"], &row["reason"], &row["detail"]["part"]),
            (&json!("unwanted"), &json!("filter"), &json!("payload.total > 100")),
            "{row:#}"
        );
        assert_eq!(told.by_command["right-filter"]["status"], wanted);
        let row = &told.by_command["failing-filter"];
        assert_eq!(row["status"], "condition_failed", "{row:#}");
        assert!(row["reason"].as_str().unwrap().contains("nothing"), "{row:#}");
    };
    check(&Told::about(&database, event).await, "not_routed", "a running relay");
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    recorder.wait_for(2).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let told = Told::about(&database, event).await;
    check(&told, "settled", "");
    for name in ["other-filter", "right-filter", "failing-filter"] {
        assert_eq!(told.by_sql[name]["status"], "unknown", "SQL evaluates no filters");
    }
    assert!(relay.stop().await.complete);
    let said = shown(&database, &[&event.to_string()]);
    assert!(said.contains("other-filter: unwanted, filter: payload.total > 100\n"), "{said}");
    assert!(said.ends_with("2 settled without a record, 6 not owed\n"), "{said}");

    // Conditions of today say little about what was routed under those of yesterday.
    database.execute("update outbox.subscriptions set topics = '{else}' where name = 'wants-it'").await;
    let told = Told::about(&database, event).await;
    let row = told.both("wants-it", "unwanted", "topics", "");
    assert!(row["detail"]["changed_at"].is_string(), "{row:#}");
    assert!(shown(&database, &[&event.to_string()]).contains("the subscription was changed at "));
    database.drop().await;
}

/// Values that are alike, so that conditions hold often and fail at each place.
const ORGANIZATIONS: [Option<&str>; 3] = [None, Some("acme"), Some("acm")];
const TOPICS: [&str; 7] = ["a", "a.b", "a.b.c", "ab.c", "a.bc", "b.a", "A.b"];
const PATTERNS: [&str; 12] =
    ["**", "*", "a", "a.*", "a.**", "**.c", "a.b*", "*.b", "a.*.c", "**.b.**", "a*.c", "*.*"];
const KEYS: [Option<&str>; 5] = [None, Some("k"), Some("k-1"), Some("k_1"), Some("K-1")];
const PREFIXES: [&str; 5] = ["k", "k-", "k_", "K", "%"];
const PAYLOADS: [&str; 9] = [
    "1",
    "null",
    "[1, 2, [3]]",
    r#"{"a": 1}"#,
    r#"{"a": 1.0, "b": {"c": [1, {"d": null}]}}"#,
    r#"{"a": [1, 1, 2], "b": null}"#,
    r#"{"a": "1", "b": {}}"#,
    r#"{"a": 12345678901234567890123, "b": {"c": []}}"#,
    r#"{"b": {"c": [{"d": null}, 1, 2]}}"#,
];
const MATCHES: [&str; 11] = [
    "1",
    "{}",
    "[1]",
    "[[3]]",
    r#"{"a": 1}"#,
    r#"{"a": 1.00}"#,
    r#"{"b": {"c": [{"d": null}]}}"#,
    r#"{"a": [2, 1]}"#,
    r#"{"b": {}}"#,
    r#"{"b": null}"#,
    r#"{"a": 12345678901234567890124}"#,
];

#[tokio::test(flavor = "multi_thread")]
async fn sql_and_the_code_that_routes_name_the_same_condition_over_random_subscriptions_and_events() {
    let database = Database::new().await;
    let mut random = StdRng::seed_from_u64(seed());
    for n in 0..60 {
        let mut some = |values: &[&str], most: usize| -> Vec<String> {
            (0..random.random_range(1..=most))
                .map(|_| (*values.choose(&mut random).unwrap()).to_owned())
                .collect()
        };
        let (patterns, prefixes) = (some(&PATTERNS, 2), some(&PREFIXES, 2));
        sqlx::query(
            "select outbox.subscribe($1, $2, 'recorder', organization => $3, keys => $4, match => $5::jsonb)",
        )
        .bind(format!("s{n}"))
        .bind(patterns)
        .bind(ORGANIZATIONS.choose(&mut random).unwrap())
        .bind(random.random_bool(0.4).then_some(prefixes))
        .bind(random.random_bool(0.5).then(|| *MATCHES.choose(&mut random).unwrap()))
        .execute(&database.pool)
        .await
        .unwrap();
    }
    let mut seen = std::collections::BTreeMap::new();
    for _ in 0..25 {
        let event = sqlx::query_scalar("select outbox.publish($1, $2::jsonb, key => $3, organization => $4)")
            .bind(TOPICS.choose(&mut random).unwrap())
            .bind(PAYLOADS.choose(&mut random).unwrap())
            .bind(KEYS.choose(&mut random).unwrap())
            .bind(ORGANIZATIONS.choose(&mut random).unwrap())
            .fetch_one(&database.pool)
            .await
            .unwrap();
        let told = Told::about(&database, event).await;
        assert_eq!(told.by_sql.len(), 60);
        for (name, row) in &told.by_sql {
            let said = row["reason"].as_str().unwrap_or("wanted");
            let status = if said == "wanted" { "not_routed" } else { "unwanted" };
            let waits_for = if said == "wanted" { "a running relay" } else { "" };
            told.both(name, status, row["reason"].as_str().unwrap_or_default(), waits_for);
            *seen.entry(said.to_owned()).or_insert(0) += 1;
        }
    }
    for which in ["organization", "topics", "keys", "match", "wanted"] {
        assert!(seen.get(which).is_some_and(|&count| count > 20), "{which} came too seldom: {seen:?}");
    }
    database.drop().await;
}

#[tokio::test]
async fn ten_thousand_subscriptions_are_counted_by_condition_in_seconds() {
    let database = Database::new().await;
    database
        .execute(
            "insert into outbox.subscriptions (name, topics, sink, organization, filter) \
             select 's' || n, array[case when n % 10 = 0 then 'mail.**' else 'shop.**' end], 'recorder', \
                    case when n % 10 <> 0 then 'org' || n end, \
                    case when n % 2 = 0 then 'payload.total > ' || n end \
               from generate_series(1, 10000) as n",
        )
        .await;
    database.execute("select outbox.subscribe('one', array['shop.*'], 'recorder')").await;
    let event = publish(&database, "shop.sold", r#"{"total": 1}"#, "").await;
    let began = Instant::now();
    let said = shown(&database, &[&event.to_string()]);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(
        said.contains(
            "10000 subscriptions do not want it: organization 9000, topics 1000 (--all lists them)"
        ),
        "{said}"
    );
    assert!(said.lines().count() < 20 && said.contains("one: not_routed"), "{said}");
    assert!(shown(&database, &[&event.to_string(), "--all"]).lines().count() > 10_000);
    let began = Instant::now();
    let rows = format!("select count(*) from outbox.explain('{event}')");
    assert_eq!(database.count(rows).await, 10_001);
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    // Each of them has a record.
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at) \
             select one.id, now(), position, event.created_at from outbox.subscriptions as one, outbox.events as event",
        )
        .await;
    let began = Instant::now();
    assert!(shown(&database, &[&event.to_string()]).ends_with("10001 waiting\n"));
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    database.drop().await;
}
