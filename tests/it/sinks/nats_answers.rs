//! Whose answer counts as that of a stream, and what a stream takes for a repeat.

use async_nats::jetstream::stream;
use futures_util::StreamExt as _;
use pgoutbox::delivery::{Outcome, Reason};
use serde_json::json;
use tokio::task::JoinSet;

use super::nats::{Nats, events, reason, send_one};
use crate::{
    sink_contract::Destination as _,
    support::{
        Database, RelayBox,
        deliveries::{connections, deliveries, registry},
        relay::settings,
    },
};

/// A subscriber that answers every message of a subject, as a service does.
async fn answering(nats: &Nats, subject: &'static str, answer: &'static str) -> JoinSet<()> {
    let client = async_nats::connect(format!("127.0.0.1:{}", nats.server.port())).await.unwrap();
    let mut messages = client.subscribe(subject).await.unwrap();
    client.flush().await.unwrap();
    let mut running = JoinSet::new();
    running.spawn(async move {
        while let Some(message) = messages.next().await {
            client.publish(message.reply.unwrap(), answer.into()).await.unwrap();
            client.flush().await.unwrap();
        }
    });
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_subscriber_answers_is_not_the_answer_of_the_stream() {
    let nats = Nats::start().await;
    let mut subscribers = Vec::new();
    let foreign = ["thanks", "", "{}", "{\"seq\": 7}", "{\"error\": {\"code\": 404}}"];
    for answer in foreign {
        subscribers.push(answering(&nats, "events.>", answer).await);
        subscribers.push(answering(&nats, "other.>", answer).await);
    }
    let deliveries = deliveries(&nats.registry(), "nats", json!({ "subject": "events.a" }), 100);
    for report in deliveries.outlet.send(&deliveries).await {
        assert_eq!(report.outcome, Outcome::Delivered, "{report:?}");
    }
    assert_eq!(nats.messages("EVENTS").await.len(), 100);
    // Without a stream none of them makes an event delivered.
    let registry = registry(&format!("{}\ntimeout = '1s'", nats.section()));
    let report = send_one(&registry, json!({ "subject": "other.a" })).await;
    assert_eq!(reason(&report), (Some(Reason::BrokenAnswer), true), "{report:?}");
}

#[tokio::test]
async fn check_finds_a_stream_that_acknowledges_nothing() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    context.update_stream(stream::Config { no_ack: true, ..events() }).await.unwrap();
    let check =
        async || nats.registry().bind("nats", &json!({ "subject": "events.a" })).unwrap().check().await;
    let problem = check().await.unwrap_err();
    assert!(problem.as_str().contains("EVENTS has no_ack"), "{problem:?}");
    context.update_stream(events()).await.unwrap();
    assert_eq!(check().await.map_err(|problem| problem.as_str().to_owned()), Ok(()));
}

/// Runs a relay until nothing is owed.
async fn relayed(database: &Database, nats: &Nats) {
    let relay = RelayBox::start_with(database, |builder| {
        builder.settings(settings("relay")).connections(&connections(&nats.section())).unwrap()
    })
    .await;
    database
        .eventually(
            "select not exists (select from outbox.owed) and not exists (select from outbox.starts) \
             and (select count(*) from outbox.events) > 0",
        )
        .await;
    relay.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_wants_again_is_stored_again_within_the_window_for_duplicates() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let subscribe = |name: &str| {
        format!(
            "select outbox.subscribe('{name}', array['**'], 'nats', start => 'beginning', \
             config => '{{\"subject\": \"events.{{topic}}\"}}')"
        )
    };
    database.execute("select outbox.publish('shop.a', '1'), outbox.publish('shop.a', '2')").await;
    database.execute(&subscribe("all")).await;
    relayed(&database, &nats).await;
    assert_eq!(nats.messages("EVENTS").await.len(), 2);
    let purge = async || {
        let stream = nats.jetstream().await.get_stream("EVENTS").await.unwrap();
        stream.purge().await.unwrap();
    };
    // The same subscription, made again.
    purge().await;
    database.execute("select outbox.unsubscribe('all')").await;
    database.execute(&subscribe("all")).await;
    relayed(&database, &nats).await;
    assert_eq!(nats.messages("EVENTS").await.len(), 2, "a new subscription");
    // Another one beside it.
    database.execute(&subscribe("other")).await;
    relayed(&database, &nats).await;
    assert_eq!(nats.messages("EVENTS").await.len(), 4, "another subscription");
    purge().await;
    database
        .execute(
            "insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, \
                 position, created_at, topic, payload, headers, priority) \
             select target.id, target.name, 'timeout', 1, event.id, event.position, event.created_at, \
                    event.topic, event.payload, event.headers, event.priority \
               from outbox.events as event cross join outbox.subscriptions as target \
              where target.name = 'all'",
        )
        .await;
    database.execute("select outbox.redrive()").await;
    relayed(&database, &nats).await;
    assert_eq!(nats.messages("EVENTS").await.len(), 2, "a redrive");
}
