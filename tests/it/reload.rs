//! Changes of subscriptions are followed at once by every relay; one bad row disturbs nobody.

use std::{collections::HashMap, time::Duration};

use pgoutbox::{
    relay::{Settings, telemetry::Signal},
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::support::{Database, Recorder, RelayBox, relay::settings};

fn is_reloaded(signal: &Signal) -> bool {
    matches!(signal, Signal::Reloaded { .. })
}

/// A relay with webhooks and a recorder that looks for due deliveries twice a second.
async fn relay_with_webhooks(database: &Database, recorder: &Recorder) -> RelayBox {
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    let secrets = Secrets::with_environment(None, |name| match name {
        "PGOUTBOX_SECRET_SHORT" => Some("short".into()),
        "DATABASE_URL" => Some("postgres://canary".into()),
        _ => None,
    });
    let webhook = Webhook::new(&egress, secrets).unwrap();
    let mut settings = settings("relay");
    settings.poll = Some(Duration::from_millis(500));
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(recorder.clone()).sink(webhook))
        .await
}

#[tokio::test]
async fn a_committed_change_is_followed_by_every_relay_within_a_second() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        relays.push(
            RelayBox::start_with(&database, |builder| {
                builder.settings(settings(name)).sink(recorder.clone())
            })
            .await,
        );
    }
    let mut took = Vec::new();
    for change in [
        "select outbox.subscribe('shop', array['a'], 'recorder')",
        "select outbox.subscribe('shop', array['b'], 'recorder')",
        "select outbox.pause('shop')",
        "select outbox.resume('shop')",
        "select outbox.unsubscribe('shop')",
    ] {
        for relay in &mut relays {
            relay.wait_asleep().await;
        }
        let committed = Instant::now();
        database.execute(change).await;
        for relay in &mut relays {
            relay.wait(is_reloaded).await;
        }
        took.push(committed.elapsed());
    }
    took.sort();
    assert!(took[2] < Duration::from_secs(1), "each of five changes took {took:?}; the poll is every 20 s");
    for relay in relays {
        relay.stop().await;
    }
    database.drop().await;
}

/// Two transactions, one after the other, again and again, while two relays route other events.
#[tokio::test]
async fn an_event_committed_after_a_subscription_is_always_matched_against_it() {
    const RACES: usize = 150;
    let database = Database::new().await;
    database.execute("select outbox.subscribe('noise', array['noise'], 'recorder')").await;
    let recorder = Recorder::new();
    let one =
        RelayBox::start_with(&database, |builder| builder.settings(settings("one")).sink(recorder.clone()))
            .await;
    let two =
        RelayBox::start_with(&database, |builder| builder.settings(settings("two")).sink(recorder.clone()))
            .await;
    let mut noisy = database.connection().await;
    let noise = async {
        for _ in 0..RACES {
            sqlx::query("select outbox.publish('noise', '{}')").execute(&mut noisy).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let mut racing = database.connection().await;
    let races = async {
        for n in 0..RACES {
            sqlx::query("select outbox.subscribe('r' || $1, array['race.' || $1], 'recorder')")
                .bind(n.to_string())
                .execute(&mut racing)
                .await
                .unwrap();
            sqlx::query("select outbox.publish('race.' || $1, '{}')")
                .bind(n.to_string())
                .execute(&mut racing)
                .await
                .unwrap();
        }
    };
    tokio::join!(noise, races);
    let seen = recorder.wait_for(2 * RACES).await;
    for n in 0..RACES {
        let topic = format!("race.{n}");
        assert_eq!(seen.iter().filter(|one| one.topic == topic).count(), 1, "{topic}");
    }
    one.stop().await;
    two.stop().await;
    database.drop().await;
}

/// What passes the database's checks and cannot be used all the same. Field, sink, config.
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

/// Also rows that no check of the database has seen. Their names, and the field each should name.
async fn insert_unusable(database: &Database) -> HashMap<String, &'static str> {
    let mut expected = HashMap::new();
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
    // Each in a transaction of its own.
    database.execute("alter table outbox.subscriptions disable trigger check_subscription").await;
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
async fn thirty_bad_rows_become_invalid_each_with_its_field_while_the_good_one_flows() {
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
    assert_eq!(database.count("select count(*) from outbox.subscriptions where state = 'ok'").await, 1);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_relay_with_only_bad_rows_starts_and_a_mended_row_works_again() {
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
    let mended = "select count(*) from outbox.subscriptions where state = 'ok' and state_reason is null";
    assert_eq!(database.count(mended).await, 2);
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn what_was_committed_while_a_subscription_was_invalid_is_delivered_once_it_is_mended() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('broken', array['**'], 'recorder', '{\"bad\": true}')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    database.execute("select outbox.publish('a.b', '1')").await;
    relay.wait(|signal| matches!(signal, Signal::Routed { events: 1, deliveries: 1 })).await;
    database.execute("select outbox.subscribe('broken', array['**'], 'recorder')").await;
    let seen = timeout(Duration::from_secs(10), recorder.wait_for(1))
        .await
        .expect("mending should not wait for the poll");
    assert_eq!(seen[0].payload, "1");
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.deliveries").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_lacks_a_sink_leaves_the_subscription_to_one_that_has_it() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('elsewhere', array['**'], 'recorder')").await;
    let without = RelayBox::start_with(&database, |builder| builder.settings(settings("without"))).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    let recorder = Recorder::new();
    // What another relay has routed and cannot send is found by the poll.
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
async fn a_paused_subscription_is_owed_what_was_committed_and_gets_it_when_resumed() {
    let database = Database::new().await;
    database
        .execute("select outbox.subscribe('paused', array['**'], 'recorder'); select outbox.subscribe('other', array['**'], 'recorder')")
        .await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.pause('paused')").await;
    relay.wait(is_reloaded).await;
    for n in 0..30 {
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
    }
    // The other one has them all: had the paused one been sent to, it would have been seen by now.
    let seen =
        recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == "other").count() == 30).await;
    assert!(seen.iter().all(|one| one.subscription == "other"), "{seen:?}");
    database.eventually("select backlog = 30 and in_flight = 0 and not active from outbox.subscription_status where name = 'paused'").await;
    database.execute("select outbox.resume('paused')").await;
    let seen = timeout(Duration::from_secs(10), recorder.wait_for(60))
        .await
        .expect("resuming should not wait for the poll");
    assert_eq!(seen.iter().filter(|one| one.subscription == "paused").count(), 30);
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.deliveries").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn what_a_deleted_subscription_was_owed_is_cancelled_and_what_is_in_flight_ends() {
    let database = Database::new().await;
    database
        .execute("select outbox.subscribe('leaving', array['**'], 'recorder'); select outbox.subscribe('staying', array['**'], 'recorder')")
        .await;
    let recorder = Recorder::new();
    let closed = recorder.gate.clone().write_owned().await;
    let relay = relay_with_webhooks(&database, &recorder).await;
    database.execute("select outbox.publish('a.b', n::text::jsonb) from generate_series(1, 100) as n").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.subscription == "leaving")).await;
    // More than is cancelled in one statement.
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
             select (select id from outbox.subscriptions where name = 'leaving'), now() + interval '1 hour', 1, now() from generate_series(1, 12000)",
        )
        .await;
    database.execute("select outbox.unsubscribe('leaving')").await;
    database.eventually("select not exists (select from outbox.deliveries as d where not exists (select from outbox.subscriptions as s where s.id = d.subscription_id))").await;
    drop(closed);
    recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == "staying").count() == 100).await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.deliveries").await, 0);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.drop().await;
}

/// Every event is matched against the subscriptions before a change or after it, never against some of each.
#[tokio::test]
async fn a_change_of_two_thousand_rows_is_seen_whole() {
    const MANY: usize = 2_000;
    let database = Database::new().await;
    database
        .execute(format!(
            "select outbox.subscribe('s' || n, array['old'], 'recorder') from generate_series(1, {MANY}) as n"
        ))
        .await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('old', '\"before\"')").await;
    database.execute("select outbox.publish('new', '\"before\"')").await;
    recorder.wait_for(MANY).await;
    database.execute("select outbox.subscribe('s1000', array['other'], 'recorder')").await;
    relay.wait(is_reloaded).await;
    database.execute("select outbox.publish('other', '\"one\"')").await;
    let seen = recorder.wait_for(MANY + 1).await;
    assert_eq!(seen.last().unwrap().subscription, "s1000", "one row among many was changed");
    // Published while the change of all rows is under way and just after it.
    let change = database.execute("update outbox.subscriptions set topics = array['new']");
    let publish = async {
        for _ in 0..4 {
            database
                .execute("select outbox.publish('old', '\"during\"'), outbox.publish('new', '\"during\"')")
                .await;
        }
    };
    tokio::join!(change, publish);
    database.execute("select outbox.publish('old', '\"after\"')").await;
    database.execute("select outbox.publish('new', '\"after\"')").await;
    recorder.wait_until(|seen| seen.iter().filter(|one| one.payload == "\"after\"").count() == MANY).await;
    relay.stop().await;
    let mut counts: HashMap<(i64, String), usize> = HashMap::new();
    for one in recorder.seen() {
        *counts.entry((one.position, format!("{} {}", one.topic, one.payload))).or_default() += 1;
    }
    for ((position, what), count) in counts {
        assert!(
            what != "old \"after\"" && what != "new \"before\"",
            "event {position} ({what}) was wanted by nobody"
        );
        let whole = if what == "other \"one\"" {
            count == 1
        } else if what == "old \"during\"" {
            // Committed before the change, which then narrows what has not begun; one row was changed before.
            count < MANY
        } else {
            count == MANY
        };
        assert!(whole, "event {position} ({what}) went to {count} of {MANY}");
    }
    database.drop().await;
}

#[tokio::test]
async fn an_array_that_clients_cannot_read_is_refused_and_a_row_that_came_past_the_check_stops_nobody() {
    let database = Database::new().await;
    let refusal = async |arguments: &str| {
        let sql = format!("select outbox.subscribe('odd', {arguments})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&database.pool).await.unwrap_err().to_string()
    };
    for topics in ["'{{a.*},{b.*}}'", "'[0:0]={a.*}'"] {
        let said = refusal(&format!("{topics}, 'recorder'")).await;
        assert!(
            said.contains("topics: subscription 'odd' needs a plain array of 1 to 100 topic patterns"),
            "{said}"
        );
    }
    for keys in ["'{{a},{b}}'", "'[0:0]={a}'"] {
        let said = refusal(&format!("array['**'], 'recorder', keys => {keys}")).await;
        assert!(said.contains("keys: must be a plain array of 1 to 100 key prefixes"), "{said}");
    }
    database.execute("select outbox.subscribe('good', array['**'], 'recorder'), outbox.subscribe('odd', array['**'], 'recorder')").await;
    database
        .execute("set session_replication_role = replica; update outbox.subscriptions set topics = '{{a.*},{b.*}}' where name = 'odd'")
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('a.b', '1')").await;
    assert_eq!(recorder.wait_for(1).await[0].subscription, "good");
    assert!(relay.stop().await.complete);
    database.drop().await;
}
