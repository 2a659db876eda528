//! Every relay follows changes of subscriptions at once.

mod invalid;

use std::{collections::HashMap, time::Duration};

use pgoutbox::{
    relay::telemetry::Signal,
    sink::{egress::Egress, secret::Secrets},
    sinks::webhook::Webhook,
};
use sqlx::Row;
use tokio::time::{Instant, timeout};

use crate::support::{Database, Recorder, RelayBox, relay::settings};

fn is_reloaded(signal: &Signal) -> bool {
    matches!(signal, Signal::Reloaded { .. })
}

/// A relay with webhooks and a recorder that polls twice a second.
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

/// Repeats two consecutive transactions while two relays route other events.
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

#[tokio::test]
async fn a_paused_subscription_gets_its_events_when_it_is_resumed() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('paused', array['**'], 'recorder'); \
             select outbox.subscribe('other', array['**'], 'recorder')",
        )
        .await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.pause('paused')").await;
    relay.wait(is_reloaded).await;
    for n in 0..30 {
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
    }
    // The other subscription has all events; deliveries to the paused one would have been seen by now.
    let seen =
        recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == "other").count() == 30).await;
    assert!(seen.iter().all(|one| one.subscription == "other"), "{seen:?}");
    database
        .eventually(
            "select backlog = 30 and in_flight = 0 and not active \
             from outbox.subscription_status where name = 'paused'",
        )
        .await;
    database.execute("select outbox.resume('paused')").await;
    let seen = timeout(Duration::from_secs(10), recorder.wait_for(60))
        .await
        .expect("resuming should not wait for the poll");
    assert_eq!(seen.iter().filter(|one| one.subscription == "paused").count(), 30);
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn deleting_a_subscription_cancels_its_deliveries_and_lets_those_in_flight_end() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('leaving', array['**'], 'recorder'); \
             select outbox.subscribe('staying', array['**'], 'recorder')",
        )
        .await;
    let recorder = Recorder::new();
    let closed = recorder.gate.clone().write_owned().await;
    let relay = relay_with_webhooks(&database, &recorder).await;
    database.execute("select outbox.publish('a.b', n::text::jsonb) from generate_series(1, 100) as n").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.subscription == "leaving")).await;
    // More rows than one statement cancels.
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
             select (select id from outbox.subscriptions where name = 'leaving'), now() + interval '1 hour', 1, now() from generate_series(1, 12000)",
        )
        .await;
    database.execute("select outbox.unsubscribe('leaving')").await;
    database
        .eventually(
            "select not exists (select from outbox.deliveries as d \
             where not exists (select from outbox.subscriptions as s where s.id = d.subscription_id))",
        )
        .await;
    drop(closed);
    recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == "staying").count() == 100).await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.drop().await;
}

/// Every event is matched against the subscriptions before or after a change, never against a mixture.
#[tokio::test]
async fn a_change_of_two_thousand_rows_is_atomic() {
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
    // Published during and just after the change of all rows.
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
            "event {position} ({what}) matched no subscription"
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
async fn a_load_returns_the_list_of_all_ids_once_and_not_with_each_row() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('s' || n, array['a.b'], 'recorder') from generate_series(1, 50) as n; \
             select outbox.define_event_type('a.t' || n) from generate_series(1, 50) as n",
        )
        .await;
    for (statement, ids) in [
        (include_str!("../../sql/relay/load_subscriptions.sql"), 50),
        (include_str!("../../sql/relay/load_event_types.sql"), 50),
    ] {
        let rows = sqlx::query(statement).bind(None::<&str>).fetch_all(&database.pool).await.unwrap();
        let lists = rows.iter().filter_map(|row| row.try_get::<Option<Vec<i64>>, _>("ids").unwrap());
        assert_eq!(lists.map(|list| list.len()).collect::<Vec<_>>(), [ids]);
        assert_eq!(rows.len(), 51);
    }
    database.drop().await;
}

/// A claim that finds nothing because of a pause proves nothing about what is due.
#[tokio::test]
async fn a_backlog_that_is_paused_and_resumed_again_and_again_is_not_forgotten() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder', max_in_flight => 4)").await;
    database.execute("select outbox.pause('all')").await;
    let recorder = Recorder::new();
    let without_poll = crate::support::relay::settings("relay");
    let without_poll = pgoutbox::relay::Settings { poll: None, ..without_poll };
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(without_poll).sink(recorder.clone()))
            .await;
    const EVENTS: usize = 20_000;
    database
        .execute(format!(
            "insert into outbox.events (topic, payload) select 'a.b', '{{}}' from generate_series(1, {EVENTS})"
        ))
        .await;
    database.eventually("select count(*) > 0 from outbox.backlog").await;
    for round in 0..30u64 {
        database.execute("select outbox.resume('all')").await;
        let seen = recorder.seen().len();
        if seen == EVENTS {
            break;
        }
        let more = recorder.wait_until(|now| now.len() > seen || now.len() == EVENTS);
        let resumed = tokio::time::timeout(std::time::Duration::from_secs(10), more).await;
        assert!(resumed.is_ok(), "nothing is sent after resume, round {round}");
        database.execute("select outbox.pause('all')").await;
        crate::support::pause(std::time::Duration::from_millis(round * 7 % 50)).await;
    }
    database.execute("select outbox.resume('all')").await;
    recorder.wait_for(EVENTS).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}
