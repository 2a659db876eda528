//! An invalid row is marked with its field and stops no other.

use std::{collections::HashMap, time::Duration};

use pgoutbox::relay::{Settings, telemetry::Signal};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::relay_with_webhooks;
use crate::support::{Database, Recorder, RelayBox, relay::settings};

/// Subscriptions that pass the database's checks but are invalid: field, sink, config.
fn unusable() -> Vec<(&'static str, &'static str, Value)> {
    let webhook = |more: Value| {
        let mut config = json!({"url": "https://example.com/hook"});
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let mut rows = vec![("sink", "telegraph", json!({})), ("config.bad", "recorder", json!({"bad": true}))];
    for url in [
        "https://user:password@example.com/",
        "https://example.com/#fragment",
        "https://example.com:22/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "http://127.0.0.2/",
        "https://2130706434/",
        "https://0x7f000002/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://[/",
    ] {
        rows.push(("config.url", "webhook", json!({"url": url})));
    }
    for (field, more) in [
        ("config.method", json!({"method": "DELETE"})),
        ("config.method", json!({"method": 5})),
        ("config.headers", json!({"headers": []})),
        ("config.headers.host", json!({"headers": {"host": "internal"}})),
        ("config.headers.webhook-id", json!({"headers": {"webhook-id": "1"}})),
        ("config.headers.a b", json!({"headers": {"a b": "1"}})),
        ("config.headers.x-n", json!({"headers": {"x-n": 1}})),
        ("config.headers.x-line", json!({"headers": {"x-line": "a\r\nb: c"}})),
        ("config.headers.x-token", json!({"headers": {"x-token": "env:PGOUTBOX_SECRET_MISSING"}})),
        ("config.headers.x-token", json!({"headers": {"x-token": "env:DATABASE_URL"}})),
        ("config.secret", json!({"secret": "env:PGOUTBOX_SECRET_MISSING"})),
        ("config.secret", json!({"secret": "env:DATABASE_URL"})),
        ("config.secret", json!({"secret": "env:PGOUTBOX_SECRET_SHORT"})),
        ("config.secret", json!({"secret": "file:../shop"})),
        ("config.secret", json!({"secret": []})),
        ("config.body", json!({"body": "xml"})),
        ("config.timeout", json!({"timeout": "15"})),
        ("config.timeout", json!({"timeout": "2m"})),
        ("config.dead_letter_on", json!({"dead_letter_on": [500]})),
        ("config.dead_letter_on", json!({"dead_letter_on": ["400"]})),
        ("config.colour", json!({"colour": "blue"})),
    ] {
        rows.push((field, "webhook", webhook(more)));
    }
    rows
}

/// Inserts invalid rows, also some that bypass the database's checks. Returns their names with the field each
/// should name.
async fn insert_unusable(database: &Database) -> HashMap<String, &'static str> {
    let mut expected = HashMap::new();
    // As an older version of the database's checks would have let them pass.
    database.execute("alter table outbox.subscriptions disable trigger check_subscription").await;
    for (number, (field, sink, config)) in unusable().into_iter().enumerate() {
        let name = format!("bad-{number}");
        sqlx::query("select outbox.subscribe($1, array['**'], $2, $3)")
            .bind(&name)
            .bind(sink)
            .bind(config)
            .execute(&database.pool)
            .await
            .unwrap();
        expected.insert(name, field);
    }
    // A number that common types of JSON round.
    database
        .execute(
            "select outbox.subscribe('long-number', array['**'], 'recorder', \
                    '{\"bad\": true, \"n\": 12345678901234567890123}')",
        )
        .await;
    expected.insert("long-number".to_owned(), "config.bad");
    // Each in its own transaction.
    database
        .execute(
            "insert into outbox.subscriptions (name, topics, sink, retry) values
                 ('past-1', array['a..b'], 'recorder', '{}'), ('past-2', array['**'], 'recorder', '{\"tries\": 3}')",
        )
        .await;
    database.execute("alter table outbox.subscriptions enable trigger check_subscription").await;
    expected.extend([("past-1".to_owned(), "topics"), ("past-2".to_owned(), "retry")]);
    assert!(expected.len() > 30, "{}", expected.len());
    expected
}

async fn assert_invalid(database: &Database, expected: &HashMap<String, &'static str>) {
    database
        .eventually(&format!(
            "select count(*) = {} from outbox.subscriptions where state = 'invalid'",
            expected.len()
        ))
        .await;
    let rows: Vec<(String, String)> =
        sqlx::query_as("select name, state_reason from outbox.subscriptions where state = 'invalid'")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    for (name, reason) in rows {
        assert!(
            reason.starts_with(&format!("{}:", expected[&name])),
            "{name}: {reason:?} should name {}",
            expected[&name]
        );
        assert!(!reason.contains("canary") && !reason.contains("password"), "{reason}");
    }
}

#[tokio::test]
async fn thirty_invalid_rows_are_marked_with_their_field_while_the_valid_one_is_served() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('good', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = relay_with_webhooks(&database, &recorder).await;
    let expected = insert_unusable(&database).await;
    for n in 0..20 {
        database.execute(format!("select outbox.publish('shop.order', '{n}')")).await;
    }
    let seen = recorder.wait_for(20).await;
    assert!(seen.iter().all(|one| one.subscription == "good"), "{seen:?}");
    assert_invalid(&database, &expected).await;
    database.eventually("select count(*) = 1 from outbox.subscriptions where state = 'ok'").await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_relay_with_only_invalid_rows_starts_and_a_fixed_row_works_again() {
    let database = Database::new().await;
    let expected = insert_unusable(&database).await;
    let recorder = Recorder::new();
    let relay = relay_with_webhooks(&database, &recorder).await;
    assert_invalid(&database, &expected).await;
    database
        .execute("update outbox.subscriptions set sink = 'recorder', config = '{}' where name = 'bad-0'")
        .await;
    database.execute("select outbox.subscribe('past-1', array['a.b'], 'recorder')").await;
    database.execute("select outbox.publish('a.b', '1')").await;
    let seen = recorder.wait_for(2).await;
    let mut names: Vec<_> = seen.iter().map(|one| one.subscription.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["bad-0", "past-1"]);
    let fixed = "select count(*) = 2 from outbox.subscriptions where state = 'ok' and state_reason is null";
    database.eventually(fixed).await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn events_committed_while_a_subscription_was_invalid_are_delivered_once_it_is_fixed() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('broken', array['**'], 'recorder', '{\"bad\": true}')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    database.execute("select outbox.publish('a.b', '1')").await;
    relay.wait(|signal| matches!(signal, Signal::Routed { deliveries: 1, .. })).await;
    database.execute("select outbox.subscribe('broken', array['**'], 'recorder')").await;
    let seen = timeout(Duration::from_secs(10), recorder.wait_for(1))
        .await
        .expect("fixing should not wait for the poll");
    assert_eq!(seen[0].payload, "1");
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_lacks_a_sink_leaves_the_subscription_to_one_that_has_it() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('elsewhere', array['**'], 'recorder')").await;
    let without = RelayBox::start_with(&database, |builder| builder.settings(settings("without"))).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    let recorder = Recorder::new();
    // The poll finds deliveries that another relay routed but cannot send.
    let polling = Settings { poll: Some(Duration::from_millis(100)), ..settings("with") };
    let with =
        RelayBox::start_with(&database, |builder| builder.settings(polling).sink(recorder.clone())).await;
    database.eventually("select state = 'ok' from outbox.subscriptions").await;
    for n in 1..=20 {
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
        recorder.wait_for(n).await;
    }
    assert_eq!(
        database.count("select count(*) from outbox.subscriptions where state = 'ok'").await,
        1,
        "they should not contradict each other"
    );
    without.stop().await;
    with.stop().await;
    assert_eq!(recorder.seen().len(), 20);
    database.drop().await;
}

#[tokio::test]
async fn an_invalid_subscription_stays_invalid_when_another_field_is_edited() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('broken', array['**'], 'recorder', '{\"bad\": true}')").await;
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    let is_invalid = "select state = 'invalid' and state_reason like '%bad%' from outbox.subscriptions";
    database.eventually(is_invalid).await;
    for topics in ["a.*", "b.*"] {
        database.execute(format!("update outbox.subscriptions set topics = array['{topics}']")).await;
        database.eventually(is_invalid).await;
    }
    // A row that is locked while the relay finds out is recorded later.
    let mut editor = database.connection().await;
    let edit = "begin; update outbox.subscriptions set topics = array['c.*']";
    sqlx::raw_sql(edit).execute(&mut editor).await.unwrap();
    sqlx::raw_sql("commit; begin; select from outbox.subscriptions for update")
        .execute(&mut editor)
        .await
        .unwrap();
    database.eventually("select state = 'pending' from outbox.subscriptions").await;
    database.execute("select outbox.publish('z.z', '1')").await; // the relay routes it, and so reloads
    database.eventually("select bool_and(status = 'completed') from outbox.event_status").await;
    sqlx::raw_sql("rollback").execute(&mut editor).await.unwrap();
    database.eventually(is_invalid).await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_subscription_is_invalid_again_when_the_only_relay_that_could_use_it_ends() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('elsewhere', array['**'], 'recorder')").await;
    let without = RelayBox::start_with(&database, |builder| builder.settings(settings("without"))).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    let with = RelayBox::start(&database, &Recorder::new()).await;
    database.eventually("select state = 'ok' from outbox.subscriptions").await;
    // The one that is left has seen the other.
    database.eventually("select count(*) = 2 from outbox.relays").await;
    database
        .eventually("select bool_and(seen_at > started_at + interval '9 seconds') from outbox.relays")
        .await;
    with.stop().await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    without.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn an_array_that_clients_cannot_read_is_refused_and_a_row_that_bypassed_the_check_stops_no_other() {
    let database = Database::new().await;
    let refusal = async |arguments: &str| {
        let sql = format!("select outbox.subscribe('odd', {arguments})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.unwrap_err().to_string()
    };
    for topics in ["'{{a.*},{b.*}}'", "'[0:0]={a.*}'"] {
        let message = refusal(&format!("{topics}, 'recorder'")).await;
        assert!(
            message.contains("topics: subscription 'odd' needs a plain array of 1 to 100 topic patterns"),
            "{message}"
        );
    }
    for keys in ["'{{a},{b}}'", "'[0:0]={a}'"] {
        let message = refusal(&format!("array['**'], 'recorder', keys => {keys}")).await;
        assert!(message.contains("keys: must be a plain array of 1 to 100 key prefixes"), "{message}");
    }
    database
        .execute(
            "select outbox.subscribe('good', array['**'], 'recorder'), \
             outbox.subscribe('odd', array['**'], 'recorder')",
        )
        .await;
    database
        .execute(
            "set session_replication_role = replica; \
             update outbox.subscriptions set topics = '{{a.*},{b.*}}' where name = 'odd'",
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('a.b', '1')").await;
    assert_eq!(recorder.wait_for(1).await[0].subscription, "good");
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// What is written while no relay runs is not called good.
#[tokio::test]
async fn a_subscription_is_pending_until_a_relay_has_judged_what_was_written() {
    let database = Database::new().await;
    let states = |states: &str| {
        format!("select array_agg(state order by name) = '{{{states}}}' from outbox.subscriptions")
    };
    database
        .execute(
            "select outbox.subscribe('a', array['**'], 'recorder'), \
                    outbox.subscribe('b', array['**'], 'recorder', '{\"bad\": true}')",
        )
        .await;
    database.eventually(&states("pending,pending")).await;
    let said = String::from_utf8(database.pgoutbox(&["subscriptions", "list"]).stdout).unwrap();
    assert_eq!(said.matches("pending").count(), 2, "{said}");
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.eventually(&states("ok,invalid")).await;
    relay.stop().await;
    database
        .execute(
            "select outbox.subscribe('a', array['x.**'], 'recorder'), \
                    outbox.subscribe('b', array['**'], 'recorder')",
        )
        .await;
    database.eventually(&states("pending,pending")).await;
    let relay = RelayBox::start(&database, &recorder).await;
    database.eventually(&states("ok,ok")).await;
    database.execute("select outbox.subscribe('a', array['x.**'], 'recorder'), outbox.pause('b')").await;
    database.eventually(&states("ok,ok")).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}
