//! Due deliveries are found among dead entries that only vacuum could remove.

use std::time::Duration;

use pgoutbox::relay::Settings;
use sqlx::Executor as _;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

/// Whoever looks at all due times is stopped, as by the statement's limit, until the relay looks less far.
#[tokio::test]
async fn a_delivery_that_fell_due_long_ago_is_found_although_no_look_at_all_due_times_ends() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('some', array['some.*'], 'recorder')").await;
    database.execute("alter table outbox.deliveries set (autovacuum_enabled = off)").await;
    database.execute("select outbox.publish('some.thing', '1')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    recorder.wait_for(1).await;
    assert!(relay.stop().await.complete);

    let mut holder = database.connection().await;
    holder.execute("begin isolation level repeatable read; select pg_current_xact_id()").await.unwrap();
    let waiting = |rows: u32| {
        format!(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
             select 1, now() - interval '1 day' + n * interval '1 ms', event.position, event.created_at
               from outbox.events as event cross join generate_series(1, {rows}) as n"
        )
    };
    database.execute(waiting(300_000)).await;
    database.execute("delete from outbox.deliveries").await;
    database.execute(waiting(3)).await;

    let relaying = async {
        let relay = RelayBox::start(&database, &recorder).await;
        recorder.wait_for(4).await;
        relay
    };
    let looks = ["-- Find the subscriptions with deliveries", "-- Lease due deliveries"];
    let (relay, stopped) = database.stopping(&looks, relaying).await;
    assert!(stopped > 0, "a look should have been stopped");
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    drop(holder);
    database.drop().await;
}

#[tokio::test]
async fn all_parts_of_what_a_deleted_subscription_was_owed_are_cancelled() {
    let database = Database::new().await;
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at)
             select 4711, now() + n % 7 * interval '1 hour', n, now() from generate_series(1, 12000) as n",
        )
        .await;
    let often = Settings { poll: Some(Duration::from_millis(200)), ..settings("relay") };
    let relay = RelayBox::start_with(&database, |builder| builder.settings(often)).await;
    database.eventually("select not exists (select from outbox.deliveries)").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}
