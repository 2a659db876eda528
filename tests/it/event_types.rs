//! Event types: payloads that do not fit are rejected or counted, old payloads are upcast, an invalid schema
//! stops nothing.

use std::{io::Write as _, time::Duration};

use pgoutbox::relay::telemetry::Signal;
use serde_json::Value;
use tokio::time::Instant;

use crate::support::{Database, Recorder, RelayBox, recorder::Seen};

/// Dead letters: payload, reason, answer.
async fn letters(database: &Database) -> Vec<(String, String, String)> {
    sqlx::query_as(
        "select payload::text, reason, coalesce(answer, '') from outbox.dead_letters order by position, id",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
}

fn payloads(seen: &[Seen]) -> Vec<&str> {
    seen.iter().map(|one| one.payload.as_str()).collect()
}

fn is_reloaded(signal: &Signal) -> bool {
    matches!(signal, Signal::Reloaded { .. })
}

#[tokio::test]
async fn a_payload_that_does_not_fit_becomes_a_dead_letter_that_names_the_path_and_not_the_value() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    database
        .execute(
            r#"select outbox.define_event_type('shop.orders.*', 1, '{"required": ["id"], "properties": {"total": {"minimum": 0}}}'),
                      outbox.define_event_type('shop.orders.*', 2, '{"required": ["number"]}')"#,
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    for (topic, payload, version) in [
        ("shop.orders.create", r#"{"total": -4711}"#, "null"),
        ("shop.orders.create", r#"{"id": 1}"#, "null"),
        ("shop.orders.create", r#"{"id": 2}"#, "1"),
        ("shop.orders.create", r#"{"id": 3}"#, "2"),
        ("shop.orders.create", r#"{"number": 4}"#, "2"),
        ("shop.orders.create", r#"{"id": 1e400}"#, "1"),
        ("untyped", r#"{"id": 1e400}"#, "null"),
        ("shop.orders.create", r#"{"canary": 5}"#, "3"),
    ] {
        database
            .execute(format!("select outbox.publish('{topic}', '{payload}', schema_version => {version})"))
            .await;
    }
    database.eventually("select count(*) = 3 from outbox.dead_letters").await;
    let seen = recorder.wait_for(5).await;
    let mut good = payloads(&seen);
    good.sort_unstable();
    good.retain(|payload| payload.len() < 100); // 1e400 is written with all its digits
    assert_eq!(good, [r#"{"canary": 5}"#, r#"{"id": 1}"#, r#"{"id": 2}"#, r#"{"number": 4}"#]);
    assert!(seen.iter().any(|one| one.topic == "untyped"), "events without a type are not checked");
    let letters = letters(&database).await;
    let answers: Vec<&str> = letters.iter().map(|(_, _, answer)| answer.as_str()).collect();
    assert_eq!(answers[0], "event type shop.orders.* version 1: /: required \"id\", /total: minimum");
    assert_eq!(answers[1], "event type shop.orders.* version 2: /: required \"number\"");
    assert_eq!(
        answers[2],
        "event type shop.orders.* version 1: the payload cannot be checked: it has a number beyond 1.8e308"
    );
    assert!(letters.iter().all(|(_, reason, _)| reason == "schema_mismatch"), "{letters:?}");
    // After the schema is fixed and the dead letter redriven, the event is checked again.
    database
        .execute("select outbox.define_event_type('shop.orders.*', 1, '{\"properties\": {\"total\": true}}')")
        .await;
    database.execute("select outbox.redrive(error_like => '%/total%')").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.payload.contains("4711"))).await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_type_that_warns_counts_and_delivers() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    database
        .execute(
            "select outbox.define_event_type('shop.**', schema => '{\"type\": \"object\"}', mode => 'warn')",
        )
        .await;
    let recorder = Recorder::new();
    let telemetry = pgoutbox::relay::telemetry::Telemetry::new();
    let mut signals = telemetry.signals();
    let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
    let stop = pgoutbox::CancellationToken::new();
    let relay = pgoutbox::Relay::builder(pool)
        .sink(recorder.clone())
        .telemetry(telemetry.clone())
        .build()
        .await
        .unwrap();
    let run = relay.run(stop.clone());
    let act = async {
        for payload in ["1", "[]", "{}", "1e400"] {
            database.execute(format!("select outbox.publish('shop.a', '{payload}')")).await;
        }
        recorder.wait_for(4).await;
        let page = telemetry.render();
        assert!(page.contains("pgoutbox_schema_warnings_total{cause=\"mismatch\"} 2"), "{page}");
        assert!(page.contains("pgoutbox_schema_warnings_total{cause=\"unreadable\"} 1"), "{page}");
        stop.cancel();
    };
    let (drained, ()) = tokio::join!(run, act);
    assert!(drained.unwrap().complete);
    let mut warned = 0;
    while let Ok(signal) = signals.try_recv() {
        warned += usize::from(matches!(signal, Signal::SchemaWarned { .. }));
    }
    assert_eq!(warned, 3);
    assert!(letters(&database).await.is_empty());
    database.drop().await;
}

#[tokio::test]
async fn a_schema_that_cannot_be_used_is_shown_and_rejects_nothing() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    database
        .execute(
            r#"select outbox.define_event_type('a.**', schema => '{"$ref": "https://example.com/order.json"}'),
                      outbox.define_event_type('b.**', schema => '{"properties": {"total": {"type": "nmuber"}}}'),
                      outbox.define_event_type('c.**', upcast => 'payload.'),
                      outbox.define_event_type('d.**', schema => '{"$ref": "file:///etc/passwd"}'),
                      outbox.define_event_type('e.**', schema => '{"type": "object"}')"#,
        )
        .await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select count(*) = 4 from outbox.event_types where state_reason is not null").await;
    let reasons: Vec<String> =
        sqlx::query_scalar("select state_reason from outbox.event_types order by topic limit 4")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    for (reason, why) in reasons.iter().zip([
        "schema: $ref: ",
        "schema: /properties/total/type: ",
        "upcast: line 1, column ",
        "schema: $ref: ",
    ]) {
        assert!(reason.starts_with(why), "{reason:?} should begin with {why:?}");
    }
    assert!(reasons[0].contains("may only refer to itself"), "{reasons:?}");
    for topic in ["a.x", "b.x", "c.x", "d.x", "e.x"] {
        database.execute(format!("select outbox.publish('{topic}', '[]')")).await;
    }
    let seen = recorder.wait_for(4).await;
    database.eventually("select count(*) = 1 from outbox.dead_letters where topic = 'e.x'").await;
    assert!(seen.iter().all(|one| one.topic != "e.x"), "{seen:?}");
    // A relay's own change of a type's state does not trigger a reload.
    relay.wait_asleep().await;
    let generation = "select value from outbox.generation";
    let before = database.count(generation).await;
    database.execute("update outbox.event_types set state_reason = 'because' where topic = 'a.**'").await;
    assert_eq!(database.count(generation).await, before);
    database.execute("select outbox.define_event_type('a.**', schema => '{\"type\": \"object\"}')").await;
    relay.wait(is_reloaded).await;
    database.execute("select outbox.publish('a.x', '7')").await;
    database.eventually("select count(*) = 1 from outbox.dead_letters where topic = 'a.x'").await;
    assert_eq!(
        database.count("select count(*) from outbox.event_types where state_reason is null").await,
        2,
        "it was fixed"
    );
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn old_payloads_are_upcast_for_subscriptions_that_ask_for_a_version() {
    let database = Database::new().await;
    database
        .execute(
            r#"select outbox.subscribe('old', array['**'], 'recorder'),
                      outbox.subscribe('new', array['**'], 'recorder', schema_version => 3),
                      outbox.subscribe('short', array['**'], 'recorder', schema_version => 3, transform => '{"v": schema_version, "n": payload.number}');
               select outbox.define_event_type('shop.**', 1, '{"required": ["id"]}', upcast => '{"number": payload.id}'),
                      outbox.define_event_type('shop.**', 2, upcast => '{"number": payload.number, "currency": "EUR"}'),
                      outbox.define_event_type('shop.**', 3, '{"required": ["currency"]}')"#,
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .execute(
            r#"select outbox.publish('shop.a', '{"id": 1}'),
                      outbox.publish('shop.a', '{"number": 2}', schema_version => 2),
                      outbox.publish('shop.a', '{"number": 3, "currency": "USD"}', schema_version => 3),
                      outbox.publish('shop.a', '{"number": 4}', schema_version => 4)"#,
        )
        .await;
    let seen = recorder.wait_for(4 + 3 + 3).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    let of = |name: &str| {
        let mut of: Vec<Value> = seen
            .iter()
            .filter(|one| one.subscription == name)
            .map(|one| serde_json::from_str(&one.payload).unwrap())
            .collect();
        of.sort_by_key(ToString::to_string);
        of
    };
    assert_eq!(of("old").len(), 4);
    assert_eq!(
        of("new"),
        [
            serde_json::json!({"number": 1, "currency": "EUR"}),
            serde_json::json!({"number": 2, "currency": "EUR"}),
            serde_json::json!({"number": 3, "currency": "USD"}),
        ]
    );
    let short: Vec<String> = of("short").iter().map(|one| format!("{}{}", one["v"], one["n"])).collect();
    assert_eq!(short, ["31", "32", "33"], "the transform sees the upcast version and payload");
    for (payload, reason, answer) in letters(&database).await {
        assert_eq!((payload.as_str(), reason.as_str()), (r#"{"number": 4}"#, "upcast_failed"));
        assert!(answer.contains("the event has version 4; the subscription asks for version 3"), "{answer}");
    }
    // Without an upcast, and redriven once there is one.
    database.execute("select outbox.discard(), outbox.define_event_type('shop.**', 2)").await;
    database.execute("select outbox.publish('shop.a', '{\"id\": 5}')").await;
    database
        .eventually(
            "select count(*) = 2 from outbox.dead_letters where answer like '%upcast from version 2 to 3%'",
        )
        .await;
    database
        .execute(
            "select outbox.define_event_type('shop.**', 2, \
             upcast => '{\"number\": 5, \"currency\": payload.number}')",
        )
        .await;
    database.execute("select outbox.redrive()").await;
    recorder
        .wait_until(|seen| {
            seen.iter()
                .any(|one| one.payload.contains("\"currency\":5") || one.payload.contains("\"currency\": 5"))
        })
        .await;
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

/// Deliveries with and without an upcast, to a sink with batches.
#[tokio::test]
async fn a_batch_of_mixed_versions_arrives_whole() {
    let database = Database::new().await;
    database
        .execute(
            r#"create schema shop; create table shop.seen (version int, payload jsonb);
               create function shop.see(event jsonb) returns void language sql security definer as
                   'insert into shop.seen values ((event ->> ''schema_version'')::int, event -> ''payload'')';
               select outbox.define_event_type('**', 1, upcast => '{"number": payload.id}');
               select outbox.subscribe('shop', array['**'], 'function', '{"function": "shop.see"}', schema_version => 2);
               grant usage on schema shop to outbox_relay"#,
        )
        .await;
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    database
        .execute(
            "select outbox.publish('a', case when n % 2 = 0 then jsonb_build_object('number', n) else jsonb_build_object('id', n) end,
                                   schema_version => case when n % 2 = 0 then 2 end)
               from generate_series(1, 200) as n",
        )
        .await;
    database
        .eventually(
            "select count(*) = 200 and count(distinct payload -> 'number') = 200 \
             and min(version) = 2 from shop.seen",
        )
        .await;
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.attempts").await, 0, "nothing was repeated");
    database.drop().await;
}

#[tokio::test]
async fn a_changed_type_is_followed_within_a_second() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    let mut took = Vec::new();
    for (change, fits) in [
        ("select outbox.define_event_type('a.**', schema => '{\"type\": \"string\"}')", false),
        ("select outbox.define_event_type('a.**', schema => '{\"type\": \"object\"}')", true),
        ("update outbox.event_types set schema = 'false'", false),
        ("select outbox.drop_event_type('a.**')", true),
    ] {
        relay.wait_asleep().await;
        let committed = Instant::now();
        database.execute(change).await;
        relay.wait(is_reloaded).await;
        took.push(committed.elapsed());
        let (before, dead) =
            (recorder.seen().len(), database.count("select count(*) from outbox.dead_letters").await);
        database.execute("select outbox.publish('a.b', '{}')").await;
        if fits {
            recorder.wait_for(before + 1).await;
        } else {
            database.eventually(&format!("select count(*) = {} from outbox.dead_letters", dead + 1)).await;
        }
    }
    assert!(took.iter().all(|one| *one < Duration::from_secs(1)), "{took:?}");
    let generation = database.count("select value from outbox.generation").await;
    database.execute("select outbox.define_event_type('b.**'), outbox.define_event_type('b.**')").await;
    database.execute("select outbox.define_event_type('b.**')").await;
    assert_eq!(
        database.count("select value from outbox.generation").await,
        generation + 1,
        "the same call twice changes nothing"
    );
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_malformed_type_is_refused_with_its_field_and_a_hint() {
    let database = Database::new().await;
    for (call, field) in [
        ("select outbox.define_event_type('a..b')", "topic: "),
        ("select outbox.define_event_type(null)", "topic: "),
        ("select outbox.define_event_type('a', 0)", "version: "),
        ("select outbox.define_event_type('a', schema => '[]')", "schema: "),
        ("select outbox.define_event_type('a', schema => '\"true\"')", "schema: "),
        ("select outbox.define_event_type('a', schema => to_jsonb(repeat('x', 70000)))", "schema: "),
        (
            "select outbox.define_event_type('a', schema => jsonb_build_object('title', repeat('x', 70000)))",
            "schema: ",
        ),
        ("select outbox.define_event_type('a', mode => 'refuse')", "mode: "),
        ("select outbox.define_event_type('a', upcast => ' ')", "upcast: "),
        ("insert into outbox.event_types (topic, mode) values ('a', null)", "mode: "),
        ("select outbox.subscribe('s', array['a'], 'recorder', schema_version => 0)", "schema_version: "),
    ] {
        let error = sqlx::query(sqlx::AssertSqlSafe(call)).execute(&database.pool).await.unwrap_err();
        let error = error.as_database_error().unwrap().downcast_ref::<sqlx::postgres::PgDatabaseError>();
        assert!(error.message().starts_with(field) && error.hint().is_some(), "{call}: {error:?}");
    }
    assert_eq!(database.count("select count(*) from outbox.event_types").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn the_examples_of_the_manual_run_and_their_types_can_be_used() {
    let database = Database::new().await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/event-types.md")).unwrap();
    let examples: Vec<&str> =
        page.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 2);
    for example in examples {
        database.execute(example).await;
    }
    let checked = database.pgoutbox(&["types", "check"]);
    assert!(checked.status.success(), "{checked:?}");
    database.drop().await;
}

#[tokio::test]
async fn the_command_line_writes_lists_and_checks_types() {
    let database = Database::new().await;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut schema = tempfile::NamedTempFile::new().unwrap();
    schema.write_all(br#"{"required": ["id"], "example": 12345678901234567890123}"#).unwrap();
    let path = schema.path().to_str().unwrap().to_owned();
    let add = |more: &[&str]| database.pgoutbox(&[&["types", "add", "shop.**"], more].concat());
    let added =
        add(&["--schema", &path, "--upcast", "{\"number\": payload.id}", "--description", "an order"]);
    assert!(added.status.success(), "{added:?}");
    for (more, code, why) in [
        (&["--upcast", "payload."][..], 1, "upcast: line 1, column "),
        (&["--version", "0"], 2, "--version"),
        (&["--mode", "refuse"], 2, "--mode"),
        (&["--schema", "/nowhere"], 1, "reading /nowhere"),
    ] {
        let refused = add(more);
        assert_eq!(refused.status.code(), Some(code), "{refused:?}");
        assert!(text(&refused.stderr).contains(why), "{refused:?}");
    }
    schema.write_all(b"]").unwrap();
    assert!(text(&add(&["--schema", &path]).stderr).contains("line 1, column 57, where ']' is"));
    assert_eq!(
        database.count("select count(*) from outbox.event_types").await,
        1,
        "nothing else was written"
    );
    let listed = text(&database.pgoutbox(&["types", "list"]).stdout);
    assert!(listed.starts_with("TOPIC ") && listed.contains("an order"), "{listed}");
    let listed = text(&database.pgoutbox(&["types", "list", "--json"]).stdout);
    assert!(listed.contains("12345678901234567890123"), "every digit: {listed}");
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["schema"]["required"][0], "id");

    database.execute("select outbox.publish('shop.a', '{\"id\": 1}'), outbox.publish('other', '1')").await;
    let checked = database.pgoutbox(&["types", "check"]);
    assert!(checked.status.success() && checked.stdout.is_empty(), "{checked:?}");
    database
        .execute(
            "select outbox.define_event_type('shop.**', 2, '{\"required\": [\"currency\"]}', mode => 'warn')",
        )
        .await;
    database
        .execute(
            "select outbox.publish('shop.b', '{\"canary\": 1}'), \
             outbox.define_event_type('x', schema => '{\"type\": 1}')",
        )
        .await;
    let checked = database.pgoutbox(&["types", "check", "--last", "10"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let lines = text(&checked.stdout);
    for line in [
        "type             event type x version 1: schema: /type",
        "schema_mismatch ",
        "version 2, after upcasting from version 1: /: required \"currency\"",
    ] {
        assert!(lines.contains(line), "{line:?} is not in\n{lines}");
    }
    assert!(lines.lines().count() == 3 && !lines.contains("canary"), "{lines}");
    let checked = text(&database.pgoutbox(&["types", "check", "other", "--json"]).stdout);
    assert_eq!(checked.lines().count(), 1, "only the type that cannot be used: {checked}");
    let tried = text(&database.pgoutbox(&["subscriptions", "test", "--topics", "shop.b"]).stdout);
    assert!(tried.contains("error") && tried.contains("required \"id\""), "{tried}");
    database.drop().await;
}
