//! Order per key: of the events with one key one is in flight at a time, in the order of positions.

mod log; // a sink that records by key, and the check
mod exhausted; // dead letters of a key, and newer events
mod hand_over; // relays that begin to deliver what waits
mod storms; // relays end and fail

use self::log::{ByKey, Log};
use crate::support::{Database, RelayBox, relay::settings};

/// Starts a relay that sends to this sink.
async fn relay(database: &Database, name: &str, sink: &ByKey) -> RelayBox {
    RelayBox::start_with(database, |builder| builder.settings(settings(name)).sink(sink.clone())).await
}

/// Publishes one event for each of these keys, in this order.
async fn publish(database: &Database, keys: &[&str]) {
    for key in keys {
        database.execute(format!("select outbox.publish('order.test', '{{}}', key => '{key}')")).await;
    }
}

#[tokio::test]
async fn a_key_waits_while_its_event_is_retried_and_the_others_go_on() {
    let database = Database::new().await;
    database
        .execute(
            "select outbox.subscribe('ordered', array['**'], 'by_key', ordering => 'key', \
             retry => '{\"initial\": \"200ms\", \"multiplier\": 1, \"max_attempts\": 5}')",
        )
        .await;
    let log = Log::default();
    // The first two attempts at the first event of a fail.
    let sink = log.sink(|attempt| attempt.key.as_deref() != Some("a") || attempt.number > 2);
    let relay = relay(&database, "relay", &sink).await;
    publish(&database, &["a", "a", "b", "a", "b", "c"]).await;
    log.wait_for(6).await;
    let delivered = log.delivered();
    assert_eq!(delivered.iter().filter(|one| one.0 == "a").map(|one| one.1).collect::<Vec<_>>().len(), 3);
    log.check(&database).await;
    // The others did not wait for a.
    let first_of_a = delivered.iter().position(|one| one.0 == "a").unwrap();
    assert_eq!(first_of_a, 3, "{delivered:?}");
    assert!(relay.stop().await.complete);
    database.eventually("select not exists (select from outbox.owed)").await;
    database.drop().await;
}
