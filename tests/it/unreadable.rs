//! An event that the database cannot read costs itself only.

use crate::support::{Database, Recorder, RelayBox};

/// A payload of 9,000 numbers: 108 KB in the table, and more than the database can hold as text.
const TOO_LONG: &str = "alter domain outbox.payload drop constraint payload_must_be_at_most_256_kib; \
    insert into outbox.events (topic, payload) \
         select 'shop.orders.create', '{\"n\": 1}' from generate_series(1, 20); \
    insert into outbox.events (topic, payload) \
         select 'shop.orders.create', jsonb_agg(1e131071) from generate_series(1, 9000); \
    insert into outbox.events (topic, payload) \
         select 'shop.orders.create', '{\"n\": 1}' from generate_series(1, 20)";

/// Waits until a subscription has its 40 readable events and a dead letter for the other.
async fn served(database: &Database, recorder: &Recorder, name: &str) {
    recorder.wait_until(|seen| seen.iter().filter(|one| one.subscription == name).count() == 40).await;
    let dead = format!(
        "select count(*) = 1 and bool_and(reason = 'event_unreadable' and event_id is null \
                                          and topic = 'shop.orders.create' and payload = 'null') \
           from outbox.dead_letters where subscription = '{name}'"
    );
    database.eventually(&dead).await;
}

#[tokio::test]
async fn an_event_that_cannot_be_read_is_a_dead_letter_and_the_others_are_delivered() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    database
        .execute("select outbox.subscribe('some', array['**'], 'recorder', filter => 'payload.n == 1')")
        .await;
    database.execute(TOO_LONG).await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    served(&database, &recorder, "all").await;
    served(&database, &recorder, "some").await;
    database
        .execute(
            "select outbox.subscribe('past', array['**'], 'recorder', filter => 'payload.n == 1', \
                                     start => 'beginning')",
        )
        .await;
    served(&database, &recorder, "past").await;
    database.execute("select outbox.publish('shop.orders.create', '{\"n\": 1}')").await;
    recorder.wait_until(|seen| seen.len() == 3 * 41).await;
    assert!(relay.stop().await.complete);
    let unreadable = "select id::text from outbox.events order by position offset 20 limit 1";
    let id: String = sqlx::query_scalar(unreadable).fetch_one(&database.pool).await.unwrap();
    let output = database.pgoutbox(&["attempts", "--event", &id]);
    assert!(output.status.success(), "where it is can be read: {output:?}");
    database.drop().await;
}
