//! Each new event becomes one delivery for each matching subscription.

use std::time::Duration;

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres},
    store::{Advance, Page, Routed},
};
use sqlx::Executor as _;
use uuid::Uuid;

use crate::{
    channels::store,
    support::{Database, Recorder, RelayBox, relay::settings},
};

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

#[tokio::test]
async fn a_backlog_is_routed_many_events_in_a_step_although_they_are_sent_one_by_one() {
    let database = Database::new().await;
    let (sent, mut seen) = tokio::sync::mpsc::channel(1_500);
    let relay = RelayBox::start_with(&database, |builder| {
        builder.settings(settings("relay")).handler("slow", ["**"], move |_| {
            let sent = sent.clone();
            async move {
                let answered = tokio::time::Instant::now() + Duration::from_millis(5);
                tokio::time::sleep_until(answered).await;
                sent.send(()).await.map_err(|_| "the test has ended")
            }
        })
    })
    .await;
    database.execute("update outbox.subscriptions set max_in_flight = 4").await;
    database
        .execute(
            "insert into outbox.events (topic, payload) \
                 select 'shop.orders.create', '1' from generate_series(1, 1500)",
        )
        .await;
    for _ in 0..1_500 {
        tokio::time::timeout(Duration::from_secs(30), seen.recv()).await.unwrap();
    }
    let steps = database.count("select max(step) from outbox.cursor").await;
    assert!(steps <= 60, "{steps} steps for 1,500 events");
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn a_step_that_was_cancelled_is_not_tried_again_with_as_many_events() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    database
        .execute(
            "create function too_long() returns trigger language plpgsql as $$ begin \
                 if (select count(*) > 300 from added) then \
                     raise exception 'canceling statement due to statement timeout' using errcode = '57014'; \
                 end if; \
                 return null; end $$; \
             create trigger too_long after insert on outbox.deliveries referencing new table as added \
                 for each statement execute function too_long(); \
             insert into outbox.events (topic, payload, deliver_after) \
                 select 'shop.orders.create', '1', now() + interval '1 hour' from generate_series(1, 2000)",
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.eventually("select count(*) = 2000 from outbox.deliveries").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// Whoever reads all new events at once is stopped, as by the statement's limit.
#[tokio::test]
async fn what_takes_too_long_to_read_at_once_is_read_in_parts() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start(&database, &recorder).await;
    relay.wait_asleep().await;
    let mut load = database.connection().await;
    load.execute("begin").await.unwrap();
    load.execute(
        "insert into outbox.events (topic, payload) select 'other.thing', '1' from generate_series(1, 300000)",
    )
    .await
    .unwrap();
    let publishing = async {
        database.execute("select outbox.publish('some.thing', '1')").await;
        recorder.wait_for(1).await
    };
    let (seen, stopped) = database.stopping(&["-- Read events that are visible now"], publishing).await;
    assert_eq!(seen.len(), 1);
    assert!(stopped > 0, "a read should have been stopped");
    relay.stop().await;
    drop(load);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_read_before_the_server_crashed_is_not_routed_after_it() {
    let options = Options { durable: true, ..Options::default() };
    let mut server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let store = store(&database).await;
    database.execute("select outbox.publish('shop.orders.create', '{}')").await;
    let page = Page { events: 10, with_payloads: true, positions: 100, through_window: false };
    let cursor = store.load_cursor(0).await.unwrap();
    let read = store.read_events(&cursor, page).await.unwrap().unwrap();
    assert_eq!(read.events.len(), 1);
    let server = tokio::task::spawn_blocking(move || {
        server.kill();
        server.start_again().unwrap();
        server
    });
    let _server = server.await.unwrap();
    // Another stage has noticed that the connections are gone.
    assert!(store.load_cursor(0).await.is_err());
    let cursor = store.load_cursor(0).await.unwrap();
    let (routed, lease) = (Routed::default(), Duration::from_secs(10));
    let moved = store.advance_cursor(&cursor, &read, Advance::All, &routed, Uuid::nil(), lease, &[]).await;
    assert!(moved.is_err(), "the events that were read may be gone: {moved:?}");
    let read = store.read_events(&cursor, page).await.unwrap().unwrap();
    let moved = store.advance_cursor(&cursor, &read, Advance::All, &routed, Uuid::nil(), lease, &[]).await;
    assert!(moved.unwrap().is_some(), "they are read again and routed");
    store.close().await;
}
