//! Filters and `match`: which events they exclude, that others are not affected, and that events they cannot
//! evaluate are counted and shown.

use std::collections::BTreeMap;

use pgoutbox::{
    Event,
    event::filter::{Containment, Facts, Filter, Transform},
    relay::telemetry::Signal,
};
use proptest::{
    prelude::{BoxedStrategy, Just, Strategy, any},
    prop_oneof,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};

use crate::support::{Database, Recorder, RelayBox, relay::settings};
use pgoutbox::event::Position;

async fn subscribe(database: &Database, name: &str, arguments: &str) {
    database
        .execute(format!("select outbox.subscribe('{name}', array['**'], 'recorder', {arguments})"))
        .await;
}

async fn publish(database: &Database, payload: &str) {
    sqlx::query("select outbox.publish('shop.orders.create', $1::text::jsonb)")
        .bind(payload)
        .execute(&database.pool)
        .await
        .unwrap();
}

/// Payloads that each subscription received, sorted.
fn by_subscription(recorder: &Recorder) -> BTreeMap<String, Vec<String>> {
    let mut got: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for seen in recorder.seen() {
        got.entry(seen.subscription).or_default().push(seen.payload);
    }
    got.values_mut().for_each(|payloads| payloads.sort());
    got
}

#[tokio::test]
async fn a_subscription_gets_the_events_for_which_its_match_and_its_filter_hold_and_no_others() {
    let database = Database::new().await;
    subscribe(&database, "all", "'{}'").await;
    subscribe(&database, "large", "filter => 'payload.total > 100'").await;
    subscribe(&database, "paid", "match => '{\"status\": \"paid\"}'").await;
    subscribe(
        &database,
        "both",
        "match => '{\"status\": \"paid\"}', filter => 'payload.total > 100 && topic.startsWith(\"shop.\")'",
    )
    .await;
    subscribe(&database, "none", "filter => 'topic == \"other\"'").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    for (total, status) in [(50, "paid"), (150, "open"), (250, "paid")] {
        publish(&database, &json!({"total": total, "status": status}).to_string()).await;
    }
    recorder.wait_for(3 + 2 + 2 + 1).await;
    assert!(relay.stop().await.complete);
    let got: BTreeMap<String, Vec<i64>> = by_subscription(&recorder)
        .into_iter()
        .map(|(name, payloads)| {
            let mut totals: Vec<i64> = payloads
                .iter()
                .map(|text| serde_json::from_str::<Value>(text).unwrap()["total"].as_i64().unwrap())
                .collect();
            totals.sort_unstable();
            (name, totals)
        })
        .collect();
    let expected = [
        ("all", vec![50, 150, 250]),
        ("both", vec![250]),
        ("large", vec![150, 250]),
        ("paid", vec![50, 250]),
    ];
    assert_eq!(got, expected.into_iter().map(|(name, totals)| (name.to_owned(), totals)).collect());
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn an_event_that_a_filter_cannot_evaluate_is_no_match_counted_shown_and_sent_to_others() {
    let database = Database::new().await;
    subscribe(&database, "all", "'{}'").await;
    subscribe(&database, "total", "filter => 'payload.total > 100'").await;
    subscribe(&database, "yes_or_no", "filter => 'payload.total'").await;
    subscribe(&database, "contains", "match => '{\"total\": 1}'").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    let deep = format!("{{\"total\": 1, \"deep\": {}{}}}", "[".repeat(3_000), "]".repeat(3_000));
    // Wrong type, missing, not parseable. 1e400 and thirty digits in other fields do not matter.
    for payload in [
        "{\"total\": \"much\"}",
        "{}",
        &deep,
        "{\"total\": 101, \"huge\": 1e400, \"long\": 123456789012345678901234567890}",
    ] {
        publish(&database, payload).await;
    }
    let seen = recorder.wait_for(5).await;
    let mut failed = BTreeMap::<String, usize>::new();
    for _ in 0..8 {
        let Signal::FilterFailed { subscription, .. } =
            relay.wait(|signal| matches!(signal, Signal::FilterFailed { .. })).await
        else {
            unreachable!("waited for above")
        };
        *failed.entry(subscription).or_default() += 1;
    }
    assert_eq!(
        failed,
        BTreeMap::from([("contains".to_owned(), 1), ("total".to_owned(), 3), ("yes_or_no".to_owned(), 4)])
    );
    let to_total: Vec<_> = seen.iter().filter(|one| one.subscription == "total").collect();
    assert_eq!(to_total.len(), 1);
    assert!(to_total[0].payload.contains("123456789012345678901234567890"), "{}", to_total[0].payload);
    assert!(
        seen.iter().any(|one| one.payload.contains(&"[".repeat(3_000))),
        "subscriptions without a filter get it"
    );
    database
        .eventually(
            "select filter_errors = 3 \
             and last_filter_error like 'filter: payload.total > 100: %nested%' \
             from outbox.subscription_status where name = 'total'",
        )
        .await;
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), 5);
    database.drop().await;
}

#[tokio::test]
async fn a_filter_that_does_not_compile_makes_its_subscription_invalid_with_the_place_and_disturbs_no_other()
{
    let database = Database::new().await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    subscribe(&database, "good", "'{}'").await;
    subscribe(&database, "broken", "filter => 'payload.total >'").await;
    subscribe(&database, "unknown", "transform => '{\"id\": paylod.id}'").await;
    for (name, field) in [
        ("broken", "filter: line 1, column 1"),
        ("unknown", "transform: line 1, column 8: there is no variable \"paylod\""),
    ] {
        database
            .eventually(&format!(
                "select state = 'invalid' and state_reason like '{field}%' from outbox.subscriptions where name = '{name}'"
            ))
            .await;
    }
    publish(&database, "{\"total\": 1}").await;
    recorder.wait_for(1).await;
    relay.wait(|signal| matches!(signal, Signal::FilterFailed { .. })).await;
    let output = database.pgoutbox(&["check"]);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        printed.contains("subscription broken: filter: line 1")
            && printed.contains("subscription unknown: transform: line 1"),
        "{printed}"
    );
    // With an invalid filter no delivery is made; with an invalid transform deliveries wait until it is
    // fixed.
    subscribe(&database, "broken", "filter => 'payload.total > 0'").await;
    subscribe(&database, "unknown", "transform => '{\"id\": payload.total}'").await;
    let seen = recorder.wait_for(2).await;
    assert_eq!((seen[1].subscription.as_str(), seen[1].payload.as_str()), ("unknown", "{\"id\":1}"));
    publish(&database, "{\"total\": 2}").await;
    recorder.wait_for(5).await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.subscriptions where state <> 'ok'").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn large_payloads_are_read_when_a_filter_asks_for_them() {
    let database = Database::new().await;
    subscribe(&database, "odd", "filter => 'payload.n % 2 == 1 && size(payload.text) > 20000'").await;
    subscribe(&database, "all", "max_in_flight => 2").await;
    let recorder = Recorder::new();
    // Not compressible, so that PostgreSQL stores it as a large value.
    database
        .execute(
            "insert into outbox.events (topic, payload)
             select 'shop.large', jsonb_build_object('n', n, 'text', (select string_agg(md5(n::text || part), '') from generate_series(1, 1000) as part))
               from generate_series(1, 60) as n",
        )
        .await;
    // A backlog of large events.
    database
        .execute(
            "insert into outbox.events (topic, payload) \
             select 'shop.small', '{\"n\": 1, \"text\": \"\"}' from generate_series(1, 60)",
        )
        .await;
    let relay = RelayBox::start(&database, &recorder).await;
    let seen = recorder.wait_for(120 + 30).await;
    assert!(relay.stop().await.complete);
    let odd: Vec<_> = seen.iter().filter(|one| one.subscription == "odd").collect();
    assert_eq!(odd.len(), 30);
    assert!(odd.iter().all(|one| one.payload.len() > 20_000 && one.topic == "shop.large"));
    assert_eq!(recorder.seen().len(), 150);
    database.drop().await;
}

/// Their evaluation takes seconds, and is done beside routing.
#[tokio::test(flavor = "multi_thread")]
async fn filters_on_large_payloads_do_not_hold_up_the_events_of_others() {
    const LARGE: usize = 150;
    let database = Database::new().await;
    subscribe(&database, "slow", "filter => 'payload.lines.all(line, line.n >= 0)'").await;
    database.execute("select outbox.subscribe('quick', array['quick'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .execute(format!(
            "insert into outbox.events (topic, payload)
             select 'large', jsonb_build_object('lines', (select jsonb_agg(jsonb_build_object('n', line, 'text', md5(n::text || line)))
               from generate_series(1, 2000) as line)) from generate_series(1, {LARGE}) as n"
        ))
        .await;
    database.execute("select outbox.publish('quick', '1')").await;
    let seen = recorder.wait_until(|seen| seen.iter().any(|one| one.subscription == "quick")).await;
    let before = seen.iter().filter(|one| one.topic == "large").count();
    assert!(before < LARGE / 2, "{before} of {LARGE} large events were delivered before it");
    // `slow` also wants the small event, if its filter could be evaluated for it.
    recorder.wait_until(|seen| seen.iter().filter(|one| one.topic == "large").count() == LARGE).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    database.eventually("select filter_errors = 1 from outbox.subscription_status where name = 'slow'").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// With two permits nearly every routing step leaves events in the log and reads them again.
#[tokio::test]
async fn a_filter_is_counted_once_for_each_event_however_often_routing_must_wait() {
    const EVENTS: usize = 400;
    let database = Database::new().await;
    subscribe(&database, "slow", "'{}'").await;
    subscribe(&database, "failing", "filter => 'payload.missing == 1'").await;
    let recorder = Recorder::new();
    let mut narrow = settings("relay");
    narrow.permits = 2;
    narrow.permits_per_subscription = 2;
    database
        .execute(format!(
            "insert into outbox.events (topic, payload) select 'a', '{{}}' from generate_series(1, {EVENTS})"
        ))
        .await;
    let mut relay =
        RelayBox::start_with(&database, |builder| builder.settings(narrow).sink(recorder.clone())).await;
    let mut events = std::collections::HashSet::new();
    for _ in 0..EVENTS {
        let Signal::FilterFailed { event, .. } =
            relay.wait(|signal| matches!(signal, Signal::FilterFailed { .. })).await
        else {
            unreachable!("waited for above")
        };
        assert!(events.insert(event), "the same event twice");
    }
    recorder.wait_for(EVENTS).await;
    relay.wait_asleep().await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn mistakes_in_filters_that_postgresql_can_detect_are_refused_at_once() {
    let database = Database::new().await;
    let long = "x".repeat(8_193);
    for (arguments, field) in [
        ("filter => ' '".to_owned(), "filter: must have 1 to 8192 bytes"),
        (format!("filter => '{long}'"), "filter: must have 1 to 8192 bytes"),
        ("transform => ''".to_owned(), "transform: must have 1 to 8192 bytes"),
        (format!("match => '[\"{long}\"]'"), "match: must have at most 4096 bytes"),
        ("ordering => 'total'".to_owned(), "ordering: 'total' is unknown"),
        ("on_exhausted => 'park'".to_owned(), "on_exhausted: needs ordering => 'key'"),
        ("\"coalesce\" => 'key'".to_owned(), "coalesce: needs ordering => 'key'"),
        ("ordering => 'key', on_exhausted => 'stop'".to_owned(), "on_exhausted: 'stop' is unknown"),
        ("rate => '0/s'".to_owned(), "rate: '0/s' is not a rate"),
        ("rate => '5 per s'".to_owned(), "rate: '5 per s' is not a rate"),
    ] {
        let refused = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select outbox.subscribe('a', array['**'], 'recorder', {arguments})"
        )))
        .execute(&database.pool)
        .await
        .unwrap_err();
        assert!(refused.to_string().contains(field), "{refused}");
    }
    // The same call changes nothing; another match changes the subscription.
    let version = "select value from outbox.generation";
    subscribe(&database, "a", "match => '{\"a\": [1, 2.0]}', filter => 'true', transform => 'payload'").await;
    let before = database.count(version).await;
    subscribe(&database, "a", "match => '{\"a\": [1, 2.0]}', filter => 'true', transform => 'payload'").await;
    assert_eq!(
        database
            .count(
                "select count(*) from outbox.subscriptions where match @> '{\"a\": [2]}' and filter = 'true'"
            )
            .await,
        1
    );
    assert_eq!(database.count(version).await, before);
    subscribe(&database, "a", "match => '{\"a\": [1]}', filter => 'true', transform => 'payload'").await;
    assert_eq!(database.count(version).await, before + 1);
    database.drop().await;
}

fn scalar() -> BoxedStrategy<String> {
    prop_oneof![
        Just("null".to_owned()),
        any::<bool>().prop_map(|value| value.to_string()),
        prop_oneof![
            Just("1"),
            Just("1.0"),
            Just("1e0"),
            Just("10e-1"),
            Just("-1"),
            Just("0"),
            Just("0.0"),
            Just("2"),
            Just("1e400")
        ]
        .prop_map(str::to_owned),
        prop_oneof![Just("\"a\""), Just("\"1\""), Just("\"\""), Just("\"\\u0061\""), Just("\"é\\n\"")]
            .prop_map(str::to_owned),
    ]
    .boxed()
}

fn tree() -> BoxedStrategy<String> {
    scalar()
        .prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4)
                    .prop_map(|items| format!("[{}]", items.join(","))),
                proptest::collection::vec(("[abc]", inner), 0..4).prop_map(|fields| {
                    let fields: Vec<String> =
                        fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
                    format!("{{{}}}", fields.join(","))
                }),
            ]
        })
        .boxed()
}

#[tokio::test]
async fn match_means_what_containment_means_in_sql() {
    const PAIRS: usize = 20_000;
    let database = Database::new().await;
    let mut runner = TestRunner::deterministic();
    let mut draw = || tree().new_tree(&mut runner).unwrap().current();
    let mut pairs: Vec<(String, String)> = (0..PAIRS).map(|_| (draw(), draw())).collect();
    // Half of the pairs are related; otherwise nearly all answers would be no.
    for (value, wanted) in pairs.iter_mut().step_by(2) {
        *value = if wanted.len().is_multiple_of(2) {
            format!("[{value},{wanted},{wanted}]")
        } else {
            format!("{{\"a\":{wanted},\"b\":{value}}}")
        };
        *wanted = if wanted.len().is_multiple_of(2) {
            format!("[{wanted}]")
        } else {
            format!("{{\"a\":{wanted}}}")
        };
    }
    let (values, wanted): (Vec<String>, Vec<String>) = pairs.into_iter().unzip();
    let rows: Vec<(String, String, bool)> = sqlx::query_as(
        "select pair.value::jsonb::text, pair.wanted::jsonb::text, pair.value::jsonb @> pair.wanted::jsonb
           from unnest($1::text[], $2::text[]) as pair (value, wanted)",
    )
    .bind(&values)
    .bind(&wanted)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert_eq!(rows.len(), PAIRS);
    let mut yes = 0;
    for (value, wanted, expected) in rows {
        let event = event(&value);
        let holds = Containment::parse(&wanted).unwrap().holds(&Facts::new(&event)).unwrap();
        assert_eq!(holds, expected, "{value} @> {wanted}");
        yes += usize::from(expected);
    }
    assert!((PAIRS / 10..PAIRS * 9 / 10).contains(&yes), "{yes} of {PAIRS} are contained");
    database.drop().await;
}

#[test]
fn every_expression_of_the_manual_is_one() {
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/filters.md")).unwrap();
    let (filters, transforms) = manual.split_once("\n## Transforms").unwrap();
    let lines = |text: &str| -> Vec<String> {
        let blocks = text.split("```text\n").skip(1).map(|block| block.split("```").next().unwrap());
        blocks.filter(|block| !block.starts_with("yes ")).flat_map(str::lines).map(str::to_owned).collect()
    };
    for text in lines(filters) {
        Filter::compile(&text).unwrap_or_else(|invalid| panic!("{text}: {invalid}"));
    }
    for text in lines(transforms) {
        Transform::compile(&text).unwrap_or_else(|invalid| panic!("{text}: {invalid}"));
    }
    assert!(lines(filters).len() >= 9 && lines(transforms).len() >= 4);
}

fn event(payload: &str) -> Event {
    Event {
        id: uuid::Uuid::nil(),
        position: Position(1),
        created_at: chrono::DateTime::UNIX_EPOCH,
        topic: "a".to_owned(),
        key: None,
        payload: payload.to_owned(),
        headers: "{}".to_owned(),
        organization: None,
        source: None,
        user_id: None,
        schema_version: None,
    }
}
