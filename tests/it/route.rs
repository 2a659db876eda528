//! Each new event becomes one delivery for each matching subscription.

use crate::support::{Database, Recorder, RelayBox};

#[tokio::test]
async fn a_committed_event_reaches_matching_subscriptions_and_a_rolled_back_one_none() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('orders', array['shop.orders.*'], 'recorder')").await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    let mut transaction = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('shop.orders.create', '{\"rolled\": \"back\"}')")
        .execute(&mut *transaction)
        .await
        .unwrap();
    transaction.rollback().await.unwrap();
    database.execute("select outbox.publish('shop.orders.create', '{\"order\": 1}')").await;
    database
        .execute("insert into outbox.events (topic, payload) values ('shop.users.create', '{\"user\": 1}')")
        .await;
    let mut seen: Vec<_> =
        recorder.wait_for(3).await.into_iter().map(|one| (one.subscription, one.payload)).collect();
    seen.sort();
    assert_eq!(
        seen,
        [("all", "{\"order\": 1}"), ("all", "{\"user\": 1}"), ("orders", "{\"order\": 1}")]
            .map(|(name, payload)| (name.to_owned(), payload.to_owned()))
    );
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), 3);
    assert_eq!(database.count("select count(*) from outbox.owed").await, 0);
    database.drop().await;
}
