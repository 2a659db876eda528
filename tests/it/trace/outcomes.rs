//! What is over: delivered, given up, never owed, or gone from the log.

use std::time::Duration;

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{AttemptLog, Settings},
};
use serde_json::json;
use uuid::Uuid;

use super::{Told, publish, shown};
use crate::support::{Database, Recorder, RelayBox, relay::settings};

async fn start(database: &Database, recorder: &Recorder, attempt_log: AttemptLog) -> RelayBox {
    let settings = Settings { attempt_log, drain: Duration::from_secs(2), ..settings("relay") };
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(recorder.clone())).await
}

async fn subscribe(database: &Database, name: &str, more: &str) {
    database.execute(format!("select outbox.subscribe('{name}', array['shop.**'], 'recorder'{more})")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_delivered_or_given_up_is_told_with_reason_and_attempts() {
    let database = Database::new().await;
    for (name, more) in [
        ("works", ""),
        ("refuses", ""),
        ("fails", ", retry => '{\"max_attempts\": 1}'"),
        ("slow", ", retry => '{\"max_age\": \"1ms\", \"initial\": \"1ms\"}'"),
        ("left", ""),
    ] {
        subscribe(&database, name, more).await;
    }
    let recorder = Recorder::answering(|seen| match seen.subscription.as_str() {
        "works" => Outcome::Delivered,
        "refuses" | "left" => Outcome::Rejected { reason: Reason::Refused },
        _ => Outcome::Retry { reason: Reason::ServerError, after: None },
    });
    let event = publish(&database, "shop.sold", "1", "").await;
    let relay = start(&database, &recorder, AttemptLog::All).await;
    database.eventually("select count(*) = 4 from outbox.dead_letters").await;
    database.eventually("select count(*) = 1 from outbox.attempts where outcome = 'delivered'").await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);

    let told = Told::about(&database, event).await;
    let row = told.both("works", "delivered", "", "");
    assert_eq!((&row["attempts"], &row["log"][0]["outcome"]), (&json!(1), &json!("delivered")), "{row:#}");
    let row = told.both("refuses", "dead_letter", "refused", "");
    assert_eq!(
        (&row["detail"]["is_redrivable"], row["detail"]["dead_letter"].is_i64()),
        (&json!(true), true),
        "{row:#}"
    );
    let row = told.both("fails", "dead_letter", "server_error", "");
    assert_eq!(row["attempts"], 1, "{row:#}");
    told.both("slow", "expired", "expired", "");
    let said = shown(&database, &[&event.to_string()]);
    assert!(said.ends_with("1 delivered, 4 given up\n"), "{said}");

    // A subscription that was deleted is told by the name that its dead letter has.
    database.execute("select outbox.unsubscribe('left'), outbox.unsubscribe('works')").await;
    let told = Told::about(&database, event).await;
    let row = told.both("left", "dead_letter", "refused", "");
    assert_eq!(row["detail"]["is_redrivable"], json!(null), "{row:#}");
    // The attempt log has ids only.
    told.both("", "delivered", "", "");
    database.execute("delete from outbox.attempts where outcome = 'delivered'").await;
    database
        .execute(
            "insert into outbox.attempts (subscription_id, position, attempt, duration, outcome, relay) \
                      select 99, position, 1, '1s', 'retry', 'r' from outbox.events",
        )
        .await;
    Told::about(&database, event).await.both("", "deleted", "", "");

    // What was discarded leaves no record of its end.
    database.execute("select outbox.discard('refuses')").await;
    let told = Told::about(&database, event).await;
    told.both("refuses", "settled", "refused", "");

    // The event leaves the log; dead letters have it.
    database.execute("delete from outbox.events").await;
    let told = Told::about(&database, event).await;
    told.both("fails", "dead_letter", "server_error", "");
    assert_eq!((&told.event["transaction"], &told.event["topic"]), (&json!(null), &json!("shop.sold")));
    let said = shown(&database, &[&event.to_string()]);
    assert!(said.contains("no longer in the log, a dead letter has it"), "{said}");
    database.execute("delete from outbox.dead_letters").await;
    for unknown in [event, Uuid::nil()] {
        let output = database.pgoutbox(&["trace", &unknown.to_string()]);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("removed from the log"), "{said}");
        let status: String = sqlx::query_scalar("select status from outbox.explain(event => $1)")
            .bind(unknown)
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert_eq!(status, "unknown_event");
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_from_before_a_subscription_is_told_from_one_that_it_got_without_a_record() {
    let database = Database::new().await;
    subscribe(&database, "always", "").await;
    let recorder = Recorder::new();
    let old = publish(&database, "shop.old", "1", "").await;
    let relay = start(&database, &recorder, AttemptLog::Off).await;
    recorder.wait_for(1).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    // Published before the next subscriptions are made, and routed after.
    let unrouted = publish(&database, "shop.unrouted", "1", "").await;
    let (today, never) = (", start => (now() - interval '1 day')::text", ", start => '2100-01-01Z'");
    for (name, more) in [("new", ""), ("all", ", start => 'beginning'"), ("today", today), ("never", never)] {
        subscribe(&database, name, more).await;
    }
    let told = Told::about(&database, old).await;
    told.both("always", "settled", "", "");
    told.both("new", "before_start", "", "");
    told.both("all", "backfill", "", "a running relay");
    told.both("today", "backfill", "", "a running relay");
    told.both("never", "before_start", "", "");
    Told::about(&database, unrouted).await.both("new", "not_routed", "", "a running relay");

    let relay = start(&database, &recorder, AttemptLog::Off).await;
    let of = |event: Uuid| {
        recorder.seen().into_iter().filter(move |one| one.event == event).map(|one| one.subscription)
    };
    database.eventually("select not exists (select from outbox.starts)").await;
    recorder.wait_until(|seen| seen.iter().filter(|one| one.event == unrouted).count() == 5).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let (told, later) = (Told::about(&database, old).await, Told::about(&database, unrouted).await);
    for name in ["always", "all", "today", "new", "never"] {
        let got = of(old).any(|one| one == name);
        assert_eq!(got, !["new", "never"].contains(&name), "{name}");
        told.both(name, if got { "settled" } else { "before_start" }, "", "");
        later.both(name, "settled", "", "");
    }
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// As in `unreadable.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_or_killed_relays_is_quarantined() {
    let database = Database::new().await;
    subscribe(&database, "shop", "").await;
    subscribe(&database, "some", ", filter => 'payload.n == 1'").await;
    database
        .execute(
            "alter domain outbox.payload drop constraint payload_must_be_at_most_256_kib; \
             insert into outbox.events (topic, payload) select 'shop.sold', jsonb_agg(1e131071) \
               from generate_series(1, 9000)",
        )
        .await;
    let event: Uuid =
        sqlx::query_scalar("select id from outbox.events").fetch_one(&database.pool).await.unwrap();
    let relay = start(&database, &Recorder::new(), AttemptLog::Failures).await;
    let both_are_given_up = "select count(*) = 2 from outbox.dead_letters";
    database.eventually_within(Duration::from_secs(120), both_are_given_up).await;
    relay.stop().await;
    database
        .execute("update outbox.dead_letters set reason = 'relay_killed' where subscription = 'some'")
        .await;
    let told = Told::about(&database, event).await;
    let row = told.both("shop", "quarantined", "event_unreadable", "");
    assert_eq!(row["detail"]["is_redrivable"], json!(false), "{row:#}");
    told.both("some", "quarantined", "relay_killed", "");
    database.execute("delete from outbox.dead_letters").await;
    Told::about(&database, event).await.both("some", "unknown", "event_unreadable", "");
    database.drop().await;
}
