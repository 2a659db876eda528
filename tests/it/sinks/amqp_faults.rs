//! The AMQP sink with a server that is frozen, killed, full or not started. Each test has its own server.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use lapin::{
    ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use pgoutbox::{
    delivery::Reason,
    sink::{Outgoing, Outlet},
};
use serde_json::json;

use super::amqp::{client, start, url};
use crate::support::{
    Database, Recorder, RelayBox,
    deliveries::{connections, deliveries, reasons, registry},
    relay::settings,
    server::{PrivateServer, eventually},
};

async fn confirmed(outlet: &Outlet, deliveries: &[Outgoing]) {
    eventually("the message is confirmed", async || {
        reasons(&outlet.send(deliveries).await).iter().all(|report| *report == ("delivered", None))
    })
    .await;
}

async fn declare(server: &PrivateServer) {
    let (connection, channel) = client(server).await;
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare("orders".into(), durable, FieldTable::default()).await.unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

fn set_disk_free_limit(server: &PrivateServer, limit: &str) {
    rabbitmqctl(server, &["set_disk_free_limit", limit]);
}

fn rabbitmqctl(server: &PrivateServer, arguments: &[&str]) {
    let script = ". ./environment && /usr/lib/rabbitmq/bin/rabbitmqctl \"$0\" \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script])
        .args(arguments)
        .current_dir(server.directory())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_wait_for_the_channels_that_the_server_grants() {
    let server = start();
    declare(&server).await;
    let narrow = format!("{}?channel_max=2", url(&server));
    let sink = registry(&format!("[sinks.amqp]\nurl = '{narrow}'"));
    let deliveries = deliveries(&sink, "amqp", json!({ "routing_key": "orders" }), 40);
    let outlet = &deliveries.outlet;
    let sent = deliveries.chunks(2).map(|two| outlet.send(two));
    for reports in futures_util::future::join_all(sent).await {
        assert_eq!(reasons(&reports), [("delivered", None); 2], "{reports:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_have_no_more_connections_waits_for_one() {
    let server = start();
    declare(&server).await;
    rabbitmqctl(&server, &["set_user_limits", "guest", r#"{"max-connections": 1}"#]);
    let (other, _channel) = client(&server).await;
    let sink = registry(&format!("[sinks.amqp]\nurl = '{}'", url(&server)));
    let deliveries = deliveries(&sink, "amqp", json!({ "routing_key": "orders" }), 1);
    let outlet = &deliveries.outlet;
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(report.outcome.reason(), Some(Reason::NoResources), "{report:?}");
    assert!(!report.ambiguous);
    other.close(200, "done".into()).await.unwrap();
    confirmed(outlet, &deliveries).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_frozen_killed_or_full_loses_no_event() {
    let mut server = start();
    declare(&server).await;
    let sink = registry(&format!("[sinks.amqp]\nurl = '{}'\ntimeout = '1s'", url(&server)));
    let deliveries = deliveries(&sink, "amqp", json!({ "routing_key": "orders" }), 6);
    let outlet = &deliveries.outlet;
    confirmed(outlet, &deliveries[..1]).await;

    server.freeze();
    let reports = outlet.send(&deliveries[1..3]).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::Timeout)); 2], "{reports:#?}");
    assert!(reports.iter().all(|report| report.ambiguous));
    server.thaw();
    confirmed(outlet, &deliveries[1..3]).await;

    // During an alarm the first publisher is blocked; later ones fail at once.
    set_disk_free_limit(&server, "1000000GB");
    let reports = outlet.send(&deliveries[3..4]).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::DestinationFull))], "{reports:#?}");
    assert!(reports[0].ambiguous && reports[0].answer.as_ref().unwrap().contains("alarm"), "{reports:?}");
    let reports = outlet.send(&deliveries[4..5]).await;
    assert_eq!(reasons(&reports), [("retry", Some(Reason::DestinationFull))], "{reports:#?}");
    assert!(!reports[0].ambiguous, "it was not sent");
    set_disk_free_limit(&server, "50MB");
    confirmed(outlet, &deliveries[3..5]).await;

    server.kill();
    let reports = outlet.send(&deliveries[5..]).await;
    assert!(
        matches!(reasons(&reports)[..], [("retry", Some(Reason::ConnectFailed | Reason::BrokenAnswer))]),
        "{reports:#?}"
    );
    server.start_again().unwrap();
    confirmed(outlet, &deliveries[5..]).await;
    let (_connection, channel) = client(&server).await;
    let mut arrived = std::collections::BTreeSet::new();
    let options = lapin::options::BasicGetOptions { no_ack: true };
    while let Some(message) = channel.basic_get("orders".into(), options).await.unwrap() {
        arrived.insert(message.properties.message_id().as_ref().unwrap().to_string());
    }
    let sent: std::collections::BTreeSet<_> =
        deliveries.iter().map(|delivery| delivery.event.id.to_string()).collect();
    assert_eq!(arrived, sent, "confirmed messages survived the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_starts_without_the_server_serves_others_and_delivers_when_it_starts() {
    let mut server = start();
    declare(&server).await;
    server.kill();
    let killed = Instant::now();
    let database = Database::new().await;
    let retry = json!({ "schedule": vec!["200ms"; 20] });
    let config = json!({ "routing_key": "orders" });
    database
        .execute(format!(
            "select outbox.subscribe('amqp', array['**'], 'amqp', '{config}', retry => '{retry}')"
        ))
        .await;
    database.execute("select outbox.subscribe('other', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let sinks = connections(&format!("[sinks.amqp]\nurl = '{}'", url(&server)));
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).sink(recorder.clone()).connections(&sinks).unwrap()
    })
    .await;
    database
        .execute(
            "insert into outbox.events (topic, payload) \
             select 'shop.orders.create', '1' from generate_series(1, 50)",
        )
        .await;
    recorder.wait_for(50).await;
    database.eventually("select count(*) > 0 from outbox.attempts where reason = 'connect_failed'").await;
    server.start_again().unwrap();
    // The breaker's pauses double, so the next probe comes at most as long after the outage as the outage
    // took.
    let outage = killed.elapsed();
    database
        .eventually_within(outage + Duration::from_secs(30), "select count(*) = 0 from outbox.owed")
        .await;
    let (_connection, channel) = client(&server).await;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("orders".into(), passive, FieldTable::default()).await.unwrap();
    assert!(queue.message_count() >= 50, "{}", queue.message_count());
    relay.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_permission_is_a_dead_letter_alone() {
    let server = start();
    let (_connection, channel) = client(&server).await;
    let none = FieldTable::default();
    channel
        .exchange_declare("shop".into(), ExchangeKind::Topic, ExchangeDeclareOptions::default(), none.clone())
        .await
        .unwrap();
    channel.queue_declare("orders".into(), QueueDeclareOptions::default(), none.clone()).await.unwrap();
    channel
        .queue_bind("orders".into(), "shop".into(), "#".into(), QueueBindOptions::default(), none)
        .await
        .unwrap();
    rabbitmqctl(&server, &["set_topic_permissions", "guest", "shop", "^orders", ".*"]);
    let database = Database::new().await;
    let retry = json!({ "schedule": ["500ms"], "jitter": 0 });
    let config = json!({ "exchange": "shop" });
    database
        .execute(format!(
            "select outbox.subscribe('amqp', array['**'], 'amqp', '{config}', retry => '{retry}')"
        ))
        .await;
    database
        .execute(
            "insert into outbox.events (topic, payload) \
             select case n when 25 then 'secrets' else 'orders' end || '.made', to_jsonb(n) \
                 from generate_series(1, 50) as n",
        )
        .await;
    let sinks = connections(&format!("[sinks.amqp]\nurl = '{}'", url(&server)));
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).connections(&sinks).unwrap()
    })
    .await;
    database
        .eventually(
            "select exists (select from outbox.dead_letters) and not exists (select from outbox.owed)",
        )
        .await;
    let dead: Vec<(serde_json::Value, String)> =
        sqlx::query_as("select payload, reason from outbox.dead_letters")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    assert_eq!(dead, [(json!(25), "access_denied".to_owned())]);
    let unclear = "select bool_and(ambiguous) from outbox.attempts where outcome = 'retry' and attempt = 1";
    assert!(
        sqlx::query_scalar::<_, bool>(unclear).fetch_one(&database.pool).await.unwrap(),
        "those before it may have been stored"
    );
    relay.stop().await;
    database.drop().await;
}
