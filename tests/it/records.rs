//! Records of deliveries: dead letters, the attempt log, the status views.

use std::time::{Duration, Instant};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{AttemptLog, Settings, telemetry::Signal},
};
use serde_json::json;

use crate::{
    support::{
        Database, Good, Recorder, RelayBox,
        hostile::{Hostile, Mode},
        relay::settings,
    },
    webhook_relay::{once, publish, relay_settings, start, status, subscribe},
};

/// Its rows then look as if they had been due for long.
#[tokio::test]
async fn a_redrive_whose_transaction_commits_late_is_delivered_at_once() {
    let database = Database::new().await;
    let (broken, mut good) = (Hostile::start(status(500)).await, Good::start().await);
    subscribe(&database, "shop", "**", json!({"url": broken.url("/")}), once()).await;
    let slow = Settings { poll: Some(Duration::from_secs(20)), ..relay_settings("relay") };
    let mut relay = start(&database, slow).await;
    publish(&database, "a.b", 3).await;
    database.eventually("select count(*) = 3 from outbox.dead_letters").await;
    subscribe(&database, "shop", "**", json!({"url": good.url}), once()).await;
    relay.wait_asleep().await;
    database
        .execute(
            "begin; select outbox.redrive(); \
             update outbox.deliveries set due_at = due_at - interval '10 minutes'; commit",
        )
        .await;
    let asked = Instant::now();
    good.take(3).await;
    assert!(asked.elapsed() < Duration::from_secs(10), "not only at the next poll: {:?}", asked.elapsed());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_dead_letter_belongs_to_its_subscription_whatever_that_is_called() {
    let database = Database::new().await;
    let (broken, mut good) = (Hostile::start(status(500)).await, Good::start().await);
    subscribe(&database, "old", "**", json!({"url": broken.url("/")}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    database.execute("update outbox.subscriptions set name = 'new'").await;
    subscribe(&database, "old", "another.topic", json!({"url": broken.url("/")}), once()).await;
    subscribe(&database, "new", "**", json!({"url": good.url}), once()).await;
    let shown = "select subscription from outbox.matching_dead_letters()";
    assert_eq!(sqlx::query_scalar::<_, String>(shown).fetch_one(&database.pool).await.unwrap(), "new");
    assert_eq!(database.count("select outbox.redrive('old')").await, 0);
    assert_eq!(database.count("select outbox.discard('old')").await, 0);
    assert_eq!(database.count("select outbox.redrive('new')").await, 1);
    good.take(1).await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn nothing_is_a_dead_letter_of_a_subscription_that_was_deleted_during_the_last_attempt() {
    let database = Database::new().await;
    let recorder = Recorder::answering(|_| Outcome::Retry { reason: Reason::ServerError, after: None });
    database
        .execute("select outbox.subscribe('shop', array['**'], 'recorder', retry => '{\"max_attempts\": 1}')")
        .await;
    let relay = RelayBox::start(&database, &recorder).await;
    let closed = recorder.gate.clone().write_owned().await;
    publish(&database, "a.b", 2).await;
    recorder.wait_for(2).await;
    database.execute("select outbox.unsubscribe('shop')").await;
    drop(closed);
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn a_last_attempt_that_a_stop_cut_off_is_made_again() {
    let database = Database::new().await;
    let recorder = Recorder::new();
    database
        .execute(
            "select outbox.subscribe('shop', array['**'], 'recorder', '{\"hang\": true}', \
                                     retry => '{\"max_attempts\": 1}')",
        )
        .await;
    let hurried = Settings { drain: Duration::from_millis(100), ..settings("relay") };
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(hurried).sink(recorder.clone())).await;
    publish(&database, "a.b", 1).await;
    recorder.wait_for(1).await;
    relay.stop().await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.execute("update outbox.subscriptions set config = '{}'").await;
    let relay = RelayBox::start(&database, &recorder).await;
    recorder.wait_for(2).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    database.drop().await;
}

#[tokio::test]
async fn two_redrives_at_once_put_an_event_that_was_removed_back_once() {
    let database = Database::new().await;
    let broken = Hostile::start(status(500)).await;
    for name in ["one", "two"] {
        subscribe(&database, name, "**", json!({"url": broken.url("/")}), once()).await;
    }
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    relay.stop().await;
    database.execute("delete from outbox.events").await;
    let mut first = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.redrive('one')").execute(&mut *first).await.unwrap();
    let second = async { database.count("select outbox.redrive('two')").await };
    let commit = async {
        database.eventually("select exists (select from pg_locks where not granted)").await;
        first.commit().await.unwrap();
    };
    let (redriven, ()) = tokio::join!(second, commit);
    assert_eq!(redriven, 1);
    assert_eq!(database.count("select count(*) from outbox.events").await, 1);
    assert_eq!(database.count("select count(*) from outbox.deliveries").await, 2);
    database.drop().await;
}

#[tokio::test]
async fn a_report_ends_with_the_relay_that_was_killed() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder')").await;
    database
        .execute(
            "insert into outbox.relays (name, version, started_at, seen_at, permits, leased_ahead, in_flight, \
                                        unsettled) values ('relay', '0', now(), now(), 1, 1, 1, 1); \
             insert into outbox.relay_subscriptions (relay, subscription_id, delivered, failed, breaker, \
                                                     filter_errors, reported_at) \
                  select 'relay', id, 0, 9, 'open', 0, now() from outbox.subscriptions",
        )
        .await;
    database.eventually("select breaker = 'open' from outbox.subscription_status").await;
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    database.eventually("select breaker = 'closed' from outbox.subscription_status").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// The event was deleted from the log while it was outstanding.
#[tokio::test]
async fn what_could_not_be_read_is_neither_redriven_nor_written_back_into_the_log() {
    let database = Database::new().await;
    let mut good = Good::start().await;
    good.switch.set_down(true);
    let retry = json!({"schedule": vec!["2s"; 9], "jitter": 0});
    subscribe(&database, "shop", "**", json!({"url": good.url}), retry).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "shop.deleted", 1).await;
    database.eventually("select attempt = 1 and lease_token is null from outbox.deliveries").await;
    database.execute("delete from outbox.events").await;
    good.switch.set_down(false);
    database
        .eventually("select reason = 'event_unreadable' and event_id is null from outbox.dead_letters")
        .await;
    assert_eq!(database.count("select outbox.redrive()").await, 0);
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 1, "it can be discarded");
    // Nor does a later subscription that starts at the beginning get anything of it.
    let all = "select outbox.subscribe('later', array['**'], 'webhook', $1, start => 'beginning')";
    sqlx::query(all).bind(json!({"url": good.url})).execute(&database.pool).await.unwrap();
    publish(&database, "shop.next", 1).await;
    let mut next = 0;
    while next < 2 {
        let one = good.take(1).await.remove(0);
        let is_next = one.topic.as_deref() == Some("shop.next");
        assert!(is_next || one.answered >= 500, "only while the receiver was down: {one:?}");
        next += usize::from(is_next);
    }
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_dead_letter_is_redriven_even_when_its_event_has_left_the_log() {
    let database = Database::new().await;
    let (broken, mut good) = (Hostile::start(status(500)).await, Good::start().await);
    subscribe(&database, "shop", "**", json!({"url": broken.url("/")}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "shop.kept", 1).await;
    database
        .execute(
            "select outbox.publish('shop.dropped', \
                  '{\"total\": 12345678901234567890.10}', \
                      key => 'k', headers => '{\"a\": \"b\"}', organization => 'acme')",
        )
        .await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    let same = "select count(*) from outbox.dead_letters as l join outbox.events as e on e.id = l.event_id
                 where (l.position, l.created_at, l.topic, l.key, l.payload, l.headers, l.organization, l.priority)
                       is not distinct from (e.position, e.created_at, e.topic, e.key, e.payload, e.headers, e.organization, e.priority)
                   and l.subscription = 'shop' and l.reason = 'server_error' and l.status = 500 and l.answer = 'no' and l.attempts = 1";
    assert_eq!(database.count(same).await, 2, "a dead letter needs nothing else");
    let ids: Vec<String> =
        sqlx::query_scalar("select event_id::text from outbox.dead_letters order by position")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    database.execute("delete from outbox.events where topic = 'shop.dropped'").await;
    subscribe(&database, "shop", "**", json!({"url": good.url}), once()).await;
    assert_eq!(database.count("select outbox.redrive('shop')").await, 2);
    let mut got = good.take(2).await;
    got.sort_by_key(|one| one.id.clone());
    assert_eq!(got.iter().map(|one| one.id.clone().unwrap()).collect::<Vec<_>>(), ids);
    let dropped = got.iter().find(|one| one.topic.as_deref() == Some("shop.dropped")).unwrap();
    assert!(dropped.body.contains("12345678901234567890.10"), "{}", dropped.body);
    database
        .eventually(
            "select not exists (select \
             from outbox.owed) and not exists (select from outbox.dead_letters)",
        )
        .await;
    assert_eq!(database.count("select outbox.redrive()").await, 0, "redriving twice sends once");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn discarding_deletes_only_the_selected_dead_letters() {
    let database = Database::new().await;
    let (broken, refusing) = (Hostile::start(status(500)).await, Hostile::start(status(404)).await);
    subscribe(&database, "broken", "**", json!({"url": broken.url("/")}), once()).await;
    subscribe(&database, "refusing", "**", json!({"url": refusing.url("/")}), once()).await;
    let relay = start(&database, relay_settings("relay")).await;
    publish(&database, "a.b", 3).await;
    database.eventually("select count(*) = 6 from outbox.dead_letters").await;
    assert_eq!(database.count("select outbox.discard(error_like => '50_', max_rows => 2)").await, 2);
    assert_eq!(database.count("select outbox.discard('broken')").await, 1);
    assert_eq!(database.count("select outbox.discard(topic => 'c.**')").await, 0);
    assert_eq!(
        database.count("select count(*) from outbox.dead_letters where subscription = 'refusing'").await,
        3
    );
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn the_attempt_log_records_what_is_configured() {
    for (log, delivered, failed) in
        [(AttemptLog::All, 2, 2), (AttemptLog::Failures, 0, 2), (AttemptLog::Off, 0, 0)]
    {
        let database = Database::new().await;
        let (broken, mut good) = (Hostile::start(status(500)).await, Good::start().await);
        subscribe(&database, "broken", "**", json!({"url": broken.url("/")}), once()).await;
        subscribe(&database, "good", "**", json!({"url": good.url}), json!({})).await;
        let relay = start(&database, Settings { attempt_log: log, ..relay_settings("relay") }).await;
        publish(&database, "a.b", 2).await;
        good.take(2).await;
        database.eventually("select count(*) = 2 from outbox.dead_letters").await;
        assert!(relay.stop().await.complete);
        let of = |outcome: &str| {
            format!(
                "select count(*) from outbox.attempts where outcome = '{outcome}' and relay = 'relay' and duration > '0'"
            )
        };
        assert_eq!(
            (database.count(of("delivered")).await, database.count(of("retry")).await),
            (delivered, failed),
            "{log:?}"
        );
        database.drop().await;
    }
}

#[tokio::test]
async fn the_status_views_distinguish_pending_processing_completed_and_failed() {
    let database = Database::new().await;
    let (hanging, broken, mut good) =
        (Hostile::start(Mode::Hang).await, Hostile::start(status(500)).await, Good::start().await);
    subscribe(&database, "paused", "t.pending", json!({"url": good.url}), json!({})).await;
    subscribe(
        &database,
        "hanging",
        "t.processing",
        json!({"url": hanging.url("/"), "timeout": "60s"}),
        json!({}),
    )
    .await;
    subscribe(&database, "good", "t.completed", json!({"url": good.url}), json!({})).await;
    subscribe(&database, "broken", "t.failed", json!({"url": broken.url("/")}), once()).await;
    subscribe(
        &database,
        "retrying",
        "t.retrying",
        json!({"url": broken.url("/")}),
        json!({"schedule": ["1h"]}),
    )
    .await;
    database.execute("select outbox.pause('paused')").await;
    let statuses = async || -> Vec<(String, String)> {
        sqlx::query_as("select topic, status from outbox.event_status where topic like 't.%' order by topic")
            .fetch_all(&database.pool)
            .await
            .unwrap()
    };
    let topics = ["t.completed", "t.failed", "t.pending", "t.processing", "t.retrying", "t.unwanted"];
    for topic in topics {
        publish(&database, topic, 1).await;
    }
    assert!(statuses().await.iter().all(|(_, status)| status == "pending"), "before any relay has seen them");
    let relay = start(&database, relay_settings("relay")).await;
    good.take(1).await;
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    database
        .eventually("select count(*) = 1 from outbox.owed where attempt = 1 and lease_token is null")
        .await;
    database.eventually("select count(*) = 3 from outbox.owed").await;
    let expected = ["completed", "failed", "pending", "processing", "pending", "completed"];
    let expected: Vec<_> =
        topics.iter().zip(expected).map(|(topic, status)| ((*topic).to_owned(), status.to_owned())).collect();
    assert_eq!(statuses().await, expected);
    let rows: Vec<(String, i64, i64, i64, i64)> = sqlx::query_as(
        "select name, backlog, in_flight, retrying, dead_letters \
         from outbox.subscription_status order by name",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let row = |name: &str, backlog, in_flight, retrying, dead| {
        (name.to_owned(), backlog, in_flight, retrying, dead)
    };
    assert_eq!(
        rows,
        [
            row("broken", 0, 0, 0, 1),
            row("good", 0, 0, 0, 0),
            row("hanging", 1, 1, 0, 0),
            row("paused", 1, 0, 0, 0),
            row("retrying", 1, 0, 1, 0)
        ]
    );
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn the_numbers_say_what_waits_in_the_log_and_what_is_not_due_has_no_age() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('slow', array['**'], 'recorder', max_in_flight => 1)").await;
    let recorder = Recorder::new();
    let closed = recorder.gate.clone().write_owned().await;
    let mut relay = RelayBox::start(&database, &recorder).await;
    database
        .execute("select outbox.publish('a.later', '1', deliver_after => now() + interval '10 days')")
        .await;
    relay.wait(|signal| matches!(signal, Signal::Routed { events: 1, .. })).await;
    let oldest = "select oldest_age is null and backlog = 1 from outbox.subscription_status";
    database.eventually(oldest).await;
    database
        .execute(
            "insert into outbox.events (topic, payload) select 'a.b', '{}' from generate_series(1, 5000)",
        )
        .await;
    database
        .eventually(
            "select log.unrouted + status.backlog = 5001 and log.unrouted > 1000 and status.backlog > 1 \
                    and log.oldest_age > '0' and status.oldest_age between '0' and interval '1 minute' \
               from outbox.log_status as log, outbox.subscription_status as status",
        )
        .await;
    let said = String::from_utf8(database.pgoutbox(&["status"]).stderr).unwrap();
    assert!(said.contains("events not routed yet, the oldest "), "{said}");
    drop(closed);
    recorder.wait_for(5000).await;
    database.eventually("select unrouted = 0 and oldest_age is null from outbox.log_status").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_attempts_of_a_delivery_have_one_occasion_and_a_redrive_has_another() {
    let database = Database::new().await;
    let subscribe =
        "select outbox.subscribe('all', array['**'], 'recorder', retry => $${\"schedule\": [\"1ms\"]}$$)";
    database.execute(subscribe).await;
    let retry = Outcome::Retry { reason: Reason::Timeout, after: None };
    // The first relay ends without a verdict for the second event, and repeats the first event.
    let failing = Recorder::answering(move |seen| {
        if seen.attempt == 1 && seen.payload == "1" { retry.clone() } else { Outcome::Delivered }
    });
    let relay = RelayBox::start(&database, &failing).await;
    database.execute("select outbox.publish('a.b', '1')").await;
    let seen = failing.wait_for(2).await;
    assert_eq!(seen[0].occasion, seen[1].occasion, "in a page, then in a row");
    assert!(seen[0].occasion.is_some());
    // What is not settled when a relay dies is sent again: here this is the second event alone.
    database.eventually("select backlog = 0 and retrying = 0 from outbox.subscription_status").await;
    let gate = failing.gate.clone();
    let closed = gate.write().await;
    database.execute("select outbox.publish('a.b', '2')").await;
    let held = failing.wait_for(3).await.remove(2);
    relay.abort().await;
    drop(closed);
    database.execute("update outbox.pages set due_at = now() - interval '1 s'").await;
    let second = Recorder::answering(|_| Outcome::Rejected { reason: Reason::Refused });
    let relay = RelayBox::start(&database, &second).await;
    let again = second.wait_for(1).await.remove(0);
    assert_eq!((again.event, again.occasion), (held.event, held.occasion), "taken over from a dead relay");
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    database.execute("select outbox.redrive()").await;
    let redriven = second.wait_for(2).await.remove(1);
    assert_eq!(redriven.event, held.event);
    assert_ne!(redriven.occasion, held.occasion);
    relay.stop().await;
    database.drop().await;
}

/// The rate of attempts would be 0.5 for what succeeds the second time.
#[tokio::test]
async fn success_is_that_of_the_last_attempt_of_each_delivery() {
    let database = Database::new().await;
    let subscribe = "select outbox.subscribe('shop', array['**'], 'recorder', \
                                             retry => '{\"schedule\": [\"1ms\", \"1h\"]}')";
    database.execute(subscribe).await;
    let recorder = Recorder::answering(|seen| match (seen.payload.as_str(), seen.attempt) {
        ("0", 2) => Outcome::Delivered,
        ("2", _) => Outcome::Rejected { reason: Reason::Refused },
        _ => Outcome::Retry { reason: Reason::Timeout, after: None },
    });
    let relay = RelayBox::start(&database, &recorder).await;
    let rate = |rate: &str| format!("select success_rate = {rate} from outbox.subscription_status");
    database.execute("select outbox.publish('a.b', '0')").await;
    database.eventually(&rate("1")).await;
    database.execute("select outbox.publish('a.b', '1'), outbox.publish('a.b', '2')").await;
    database.eventually(&rate("0.3333")).await;
    database.execute("update outbox.dead_letters set died_at = now() - interval '16 minutes'").await;
    database.eventually(&rate("0.5")).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}
