//! What is still owed: what it waits for, and until when.

use std::time::Duration;

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::{AttemptLog, Settings},
};
use serde_json::{Value, json};

use super::{Told, publish, shown};
use crate::{
    support::{Database, Recorder, RelayBox, hostile::Hostile, relay::settings},
    webhook_relay::{relay_settings, start, status, subscribe},
};

/// Seconds from now until a time.
fn seconds_until(time: &Value) -> i64 {
    let time: chrono::DateTime<chrono::Utc> = time.as_str().unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    time.timestamp() - i64::try_from(now.as_secs()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_event_waits_for_is_named_with_its_end() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe(name, array['shop.**'], 'recorder', config, \
                                     retry => jsonb_build_object('schedule', array[case name when 'asked' then '1s' else '1h' end])) \
               from (values ('paused', '{}'::jsonb), ('retrying', '{}'), ('gone', '{}'), ('asked', '{}'), \
                            ('disabled', '{}'), ('hangs', '{\"hang\": true}'), ('bad', '{\"bad\": 1}')) \
                    as one (name, config); \
             select outbox.pause('paused'); \
             update outbox.subscriptions set state = 'disabled', state_reason = 'no success for a week' \
              where name = 'disabled'",
        )
        .await;
    let event = publish(&database, "shop.sold", "1", ", key => 'o-1', organization => 'acme'").await;

    let told = Told::about(&database, event).await;
    let row = told.both("retrying", "not_routed", "", "a running relay");
    assert_eq!((&row["attempts"], &told.event["is_routed"]), (&json!(0), &json!(false)), "{row}");

    let recorder = Recorder::answering(|seen| match seen.subscription.as_str() {
        "gone" => Outcome::Gone,
        "asked" => Outcome::Retry { reason: Reason::RateLimited, after: Some(Duration::from_secs(1800)) },
        _ => Outcome::Retry { reason: Reason::Timeout, after: None },
    });
    let relay = RelayBox::start(&database, &recorder).await;
    database
        .eventually(
            "select count(*) filter (where attempt = 1 and lease_token is null) >= 2 from outbox.deliveries",
        )
        .await;
    database.eventually("select state = 'gone' from outbox.subscriptions where name = 'gone'").await;
    database.eventually("select state = 'invalid' from outbox.subscriptions where name = 'bad'").await;
    database.eventually("select count(*) = 1 from outbox.asked_pauses").await;
    database.eventually("select count(*) = 1 from outbox.attempts where outcome = 'gone'").await;
    let later = publish(&database, "shop.later", "1", ", deliver_after => now() + interval '2 h'").await;
    let after_gone = publish(&database, "shop.next", "1", "").await;
    database.eventually("select count(*) >= 6 from outbox.deliveries where owed_since > now()").await;

    let told = Told::about(&database, event).await;
    assert_eq!(told.event["topic"], "shop.sold");
    assert!(told.event["transaction"].as_str().unwrap().parse::<u64>().unwrap() > 2);
    told.both("paused", "paused", "", "outbox.resume()");
    told.both("disabled", "disabled", "no success for a week", "outbox.resume()");
    let reason = told.by_command["gone"]["reason"].as_str().unwrap();
    told.both("gone", "gone", reason, "outbox.resume()");
    let reason = told.by_command["bad"]["reason"].as_str().unwrap();
    assert!(reason.contains("config.bad"), "{reason}");
    told.both("bad", "invalid", reason, "a correction of the subscription");
    let row = told.both("retrying", "retrying", "timeout", "its next attempt");
    // The attempt log keeps failures by default.
    assert_eq!((&row["attempts"], &row["log"][0]["relay"]), (&json!(1), &json!("relay")), "{row:#}");
    assert!((2000..5000).contains(&seconds_until(&row["until"])), "an hour with its jitter: {row:#}");
    let row = told.both("asked", "paused_by_destination", "rate_limited", "the end of the pause");
    assert!(seconds_until(&row["until"]) > 1700, "{row:#}");
    let row = told.both("hangs", "in_flight", "", "an answer, or the end of the lease");
    assert_eq!(row["detail"]["relay"], "relay", "{row:#}");
    assert!(seconds_until(&row["until"]) <= 10, "{row:#}");

    let told = Told::about(&database, later).await;
    let row = told.both("retrying", "scheduled", "", "its time");
    assert!((7000..=7200).contains(&seconds_until(&row["until"])), "{row:#}");
    let told = Told::about(&database, after_gone).await;
    let reason = told.by_command["gone"]["reason"].as_str().unwrap_or_default();
    told.both("gone", "after_gone", reason, "");

    let said = shown(&database, &[&event.to_string(), "--utc"]);
    for part in [
        "organization  acme",
        "key           o-1",
        "paused: paused; waits for outbox.resume()",
        "retrying: retrying, timeout, 1 attempt; waits for its next attempt, until ",
        " attempt 1 by relay: retry, took ",
        "7 waiting",
    ] {
        assert!(said.contains(part), "{part:?} in {said}");
    }
    let one = shown(&database, &[&event.to_string(), "--subscription", "paused"]);
    assert!(one.contains("paused: paused") && !one.contains("retrying:"), "{one}");
    let none = database.pgoutbox(&["trace", &event.to_string(), "--subscription", "nobody"]);
    assert_eq!(none.status.code(), Some(1), "{none:?}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_is_named_with_its_relay() {
    let database = Database::new().await;
    let broken = Hostile::start(status(500)).await;
    let retry = json!({"schedule": vec!["0s"; 100], "jitter": 0});
    subscribe(&database, "shop", "**", json!({"url": broken.url("/")}), retry).await;
    let relay = start(&database, relay_settings("relay-b")).await;
    for n in 0..40 {
        publish(&database, "shop.sold", &n.to_string(), "").await;
    }
    database.eventually("select breaker <> 'closed' from outbox.relay_subscriptions").await;
    database
        .eventually(
            "select count(*) filter (where lease_token is not null) = 0 and count(*) = 40 from outbox.owed",
        )
        .await;
    let waits = "select event.id from outbox.events as event join outbox.deliveries as delivery \
                 using (position) where delivery.attempt = 1 order by delivery.due_at desc limit 1";
    let event = sqlx::query_scalar(waits).fetch_one(&database.pool).await.unwrap();
    let told = Told::about(&database, event).await;
    let row = told.both("shop", "breaker_open", "server_error", "a probe that succeeds");
    assert_eq!(
        (&row["detail"]["breakers"], &row["detail"]["http_status"]),
        (&json!(["relay-b"]), &json!(500)),
        "{row:#}"
    );
    relay.stop().await;
    let told = Told::about(&database, event).await;
    told.both("shop", "due", "server_error", "a running relay");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_relay_left_is_told_from_what_it_holds() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['**'], 'recorder', '{\"hang\": true}')").await;
    let recorder = Recorder::new();
    let short = Settings {
        lease: Duration::from_secs(2),
        drain: Duration::from_millis(100),
        attempt_log: AttemptLog::Off,
        ..settings("first")
    };
    let of = |name: &str| Settings { name: name.to_owned(), ..short.clone() };
    let event = publish(&database, "shop.sold", "1", "").await;
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(of("first")).sink(recorder.clone())).await;
    recorder.wait_for(1).await;
    let row = Told::about(&database, event).await;
    row.both("shop", "in_flight", "", "an answer, or the end of the lease");
    relay.abort().await;
    database.eventually("select bool_and(due_at <= now()) from outbox.pages").await;
    let told = Told::about(&database, event).await;
    // It reported within the last minute, so it counts as running.
    told.both("shop", "lease_ended", "", "a relay that takes it over");
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(of("second")).sink(recorder.clone()))
            .await;
    recorder.wait_for(2).await;
    let told = Told::about(&database, event).await;
    let row = told.both("shop", "in_flight", "", "an answer, or the end of the lease");
    assert_eq!(row["detail"]["relay"], "second", "{row:#}");
    relay.abort().await;
    database.execute("delete from outbox.relays").await;
    // Every place that such a delivery may be in.
    for (place, status) in [("deaths = 1", "suspect"), ("deaths = 0", "backlog")] {
        database
            .execute(format!(
                "delete from outbox.deliveries; delete from outbox.backlog; delete from outbox.pages; \
                 insert into outbox.backlog (subscription_id, positions, created_from, created_until) \
                 select 1, '{{[1,2)}}', created_at, created_at from outbox.events; \
                 update outbox.backlog set {place}"
            ))
            .await;
        Told::about(&database, event).await.both("shop", status, "", "a running relay");
    }
    database.drop().await;
}
