//! The feature `testing` for tests of an application.

use std::time::Duration;

use pgoutbox::{
    CancellationToken, Event, Relay,
    testing::{RecordingSink, TestDatabase, published},
};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_test_sees_the_events_of_its_transaction_and_what_a_relay_sends() {
    let database = TestDatabase::start().await.unwrap();
    let mut before = database.pool().begin().await.unwrap();
    Event::new("shop.orders.create", json!({ "id": 0 })).unwrap().publish(&mut before).await.unwrap();
    before.commit().await.unwrap();
    sqlx::query("select outbox.subscribe('shop', array['shop.**'], 'recording', '{}')")
        .execute(database.pool())
        .await
        .unwrap();

    let mut tx = database.pool().begin().await.unwrap();
    Event::new("shop.orders.create", json!({ "id": 1 })).unwrap().publish(&mut tx).await.unwrap();
    let events = published(&mut tx).await.unwrap();
    assert_eq!(events.iter().map(|event| event.payload.as_str()).collect::<Vec<_>>(), [r#"{"id": 1}"#]);
    tx.commit().await.unwrap();

    let (sink, stop) = (RecordingSink::default(), CancellationToken::new());
    let relay = Relay::builder(database.pool().clone()).allow_superuser(true).sink(sink.clone());
    let relay = relay.build().await.unwrap();
    let running = tokio_util::task::TaskTracker::new();
    let ended = running.spawn(relay.run(stop.clone()));
    let received = sink.wait_for(2, Duration::from_secs(30)).await.expect("both events within 30 s");
    let one = received.iter().find(|one| one.event.id == events[0].id).unwrap();
    assert_eq!((&*one.subscription, one.attempt), ("shop", 1));
    stop.cancel();
    assert!(ended.await.unwrap().unwrap().complete);
}
