//! What operators see of live clients.

use std::time::Duration;

use pgoutbox::live::Settings;
use serde_json::json;

use crate::support::{
    Database,
    live::{LiveBox, until},
};

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_what_they_are_sent_are_counted() {
    let database = Database::new().await;
    let settings = Settings { buffer: 65_536, poll: Duration::from_secs(20), ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    assert_eq!(live.metric("pgoutbox_live_lag_seconds"), 0.0);
    let (mut client, mut stream) = (live.connect().await, live.stream("topics=a.*", &[]).await);
    client.subscribe("a", &["a.*"], json!({ "max_unacked": 1 })).await;
    client.wait("caught_up").await;
    assert_eq!(live.metric("pgoutbox_live_connections{transport=\"websocket\"}"), 1.0);
    assert_eq!(live.metric("pgoutbox_live_connections{transport=\"stream\"}"), 1.0);
    assert!(live.metric("pgoutbox_live_log_reads_total{by=\"feed\"}") > 0.0);
    assert!(live.metric("pgoutbox_live_lag_seconds") > 0.0);
    // More than is kept in memory.
    for n in 0..4 {
        database
            .execute(format!(
                "select outbox.publish('a.b', to_jsonb(n)) from generate_series({}, {}) as n",
                100 * n + 1,
                100 * n + 100
            ))
            .await;
        for _ in 0..100 {
            stream.event().await;
        }
    }
    let first = client.wait("event").await;
    assert_eq!(live.metric("pgoutbox_live_events_sent_total"), 401.0);
    client.send(json!({ "type": "ack", "id": "a", "token": first["token"] })).await;
    client.wait("lagging").await;
    assert_eq!(client.wait("event").await["event"]["payload"], 2);
    assert_eq!(live.metric("pgoutbox_live_lagging_total"), 1.0);
    assert_eq!(live.metric("pgoutbox_live_events_sent_total"), 402.0);
    assert!(live.metric("pgoutbox_live_log_reads_total{by=\"history\"}") >= 1.0);
    live.gateway.drain();
    assert_eq!(client.next().await.unwrap_err(), Some(1001));
    while stream.next().await.is_some() {}
    until("both are gone", || {
        live.metric("pgoutbox_live_closed_total{reason=\"stopping\"}") == 2.0
            && live.metric("pgoutbox_live_connections{transport=\"websocket\"}") == 0.0
            && live.metric("pgoutbox_live_connections{transport=\"stream\"}") == 0.0
    })
    .await;
    live.stop().await;
    database.drop().await;
}
