//! What an earlier attempt may have brought already is marked wherever it is sent again.

use std::time::Duration;

use pgoutbox::{
    delivery::Outcome,
    relay::{AttemptLog, Settings},
};
use serde_json::json;

use crate::{
    support::{
        Database, Recorder, RelayBox,
        hostile::{Hostile, Mode},
        relay::settings,
    },
    webhook_relay::{publish, start, status, subscribe},
};

fn logging(name: &str) -> Settings {
    Settings { attempt_log: AttemptLog::All, lease: Duration::from_secs(2), ..settings(name) }
}

/// Attempt and mark of possible duplicates of each request.
fn marks(receiver: &Hostile) -> Vec<(String, Option<String>)> {
    let header =
        |request: &crate::support::hostile::Request, name: &str| request.header(name).map(str::to_owned);
    receiver
        .requests()
        .iter()
        .map(|request| {
            let attempt = header(request, "pgoutbox-attempt").expect("the number of the attempt");
            (attempt, header(request, "pgoutbox-possible-duplicate"))
        })
        .collect()
}

#[tokio::test]
async fn what_may_have_arrived_is_sent_again_with_a_mark_and_what_was_refused_without() {
    let database = Database::new().await;
    let (silent, refusing) = (Hostile::start(Mode::Hang).await, Hostile::start(status(404)).await);
    let retry = || json!({"schedule": ["0s", "0s"]});
    let timeout = "300ms";
    subscribe(&database, "silent", "a.b", json!({"url": silent.url("/"), "timeout": timeout}), retry()).await;
    subscribe(&database, "refusing", "a.b", json!({"url": refusing.url("/")}), retry()).await;
    let relay = start(&database, logging("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 2 from outbox.dead_letters").await;
    let marked = Some("true".to_owned());
    assert_eq!(
        marks(&silent),
        [("1".to_owned(), None), ("2".to_owned(), marked.clone()), ("3".to_owned(), marked)]
    );
    assert_eq!(marks(&refusing), [1, 2, 3].map(|attempt| (attempt.to_string(), None)));
    let logged = "select string_agg(attempt::text || repeated, ' ' order by attempt) from outbox.attempts \
                  join outbox.subscriptions as target on target.id = subscription_id where name = ";
    database.eventually(&format!("select ({logged}'silent') = '1false 2true 3true'")).await;
    database.eventually(&format!("select ({logged}'refusing') = '1false 2false 3false'")).await;
    let metrics = relay.telemetry.render();
    assert!(metrics.contains("pgoutbox_deliveries_repeated_total{sink=\"webhook\"} 2"), "{metrics}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn what_a_dead_relay_held_is_marked_whether_it_was_new_or_a_retry() {
    let database = Database::new().await;
    database
        .execute("select outbox.subscribe('s', '{a.*}', 'recorder', retry => '{\"schedule\": [\"0s\"]}')")
        .await;
    // The retry is a row, the new one a pair of a page.
    let failing = Recorder::answering(|seen| match seen.topic.as_str() {
        "a.retry" if seen.attempt == 1 => {
            Outcome::Retry { reason: pgoutbox::Reason::ServerError, after: None }
        }
        _ => Outcome::Delivered,
    });
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(logging("dies")).sink(failing.clone()))
            .await;
    let shut = failing.gate.clone();
    database.execute("select outbox.publish('a.retry', '1')").await;
    failing.wait_for(1).await;
    let closed = shut.write_owned().await;
    failing.wait_for(2).await;
    database.execute("select outbox.publish('a.new', '2')").await;
    failing.wait_for(3).await;
    relay.abort().await;
    drop(closed);
    let recorder = Recorder::new();
    let next =
        RelayBox::start_with(&database, |builder| builder.settings(logging("next")).sink(recorder.clone()))
            .await;
    recorder.wait_for(2).await;
    database
        .eventually(
            "select count(*) = 2 and bool_and(repeated and outcome = 'delivered') \
             from outbox.attempts where relay = 'next'",
        )
        .await;
    let metrics = next.telemetry.render();
    assert!(metrics.contains("pgoutbox_deliveries_repeated_total{sink=\"recorder\"} 2"), "{metrics}");
    next.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn what_an_operator_sends_early_keeps_its_mark() {
    let database = Database::new().await;
    let silent = Hostile::start(Mode::Hang).await;
    let config = json!({"url": silent.url("/"), "timeout": "300ms"});
    subscribe(&database, "silent", "a.b", config, json!({"schedule": ["1h", "1h"]})).await;
    let relay = start(&database, logging("relay")).await;
    publish(&database, "a.b", 1).await;
    database.eventually("select count(*) = 1 from outbox.waiting where attempts = 1 and repeated").await;
    database.execute("select outbox.retry('silent')").await;
    silent.wait_until(Duration::from_secs(10), |requests| requests >= 2).await;
    assert_eq!(marks(&silent)[1], ("2".to_owned(), Some("true".to_owned())));
    relay.stop().await;
    database.drop().await;
}
