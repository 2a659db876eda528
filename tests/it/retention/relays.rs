//! Relays do it by themselves.

use std::time::Duration;

use pgoutbox::{
    RelaySettings, Retention,
    relay::{Laggard, telemetry::Signal},
};

use crate::support::{Database, Recorder, RelayBox, relay::settings};

fn looking_often(name: &str, laggard: Laggard) -> RelaySettings {
    let often = Duration::from_millis(100);
    let retention = Retention { first_look: often, look_every: often, laggard, ..Retention::default() };
    RelaySettings { retention, ..settings(name) }
}

/// As if relays had looked for long: otherwise nothing leaves for ten minutes.
async fn looked_for_long(database: &Database) {
    database
        .execute(
            "insert into outbox.retention_periods (log, period, laggard, looked_at, steady_since)
             select log, '30 days', 'keep', now(), now() - interval '1 day'
               from unnest(array['events', 'attempts', 'event_ids', 'dead_letters']) as log",
        )
        .await;
}

/// From a database that has everything in its default partition, while events are published.
#[tokio::test]
async fn two_relays_at_once_make_and_drop_partitions_and_each_event_is_delivered_once() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    looked_for_long(&database).await;
    let recorder = Recorder::new();
    let start = async |name: &str| {
        let settings = looking_often(name, Laggard::Keep);
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(recorder.clone())).await
    };
    for n in 0..50 {
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
    }
    let (mut first, second) = (start("first").await, start("second").await);
    for n in 50..200 {
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
    }
    first.wait(|signal| *signal == Signal::RetentionLooked).await;
    database
        .eventually(
            "select count(*) = 2 and bool_and(kept_by is null) from outbox.retention_status where \"to\" > now()",
        )
        .await;
    recorder.wait_for(200).await;
    let (looked, old) = (
        "select count(*) = 2 from outbox.retention_periods where log in ('event_ids', 'attempts')",
        "insert into outbox.event_ids values (gen_random_uuid(), now() - interval '31 days')",
    );
    database.execute(old).await;
    database.eventually(looked).await;
    database.eventually("select count(*) = 0 from outbox.event_ids").await;
    let metrics = first.telemetry.render() + &second.telemetry.render();
    assert!(metrics.contains("pgoutbox_retention_partitions_made_total{log=\"events\"}"), "{metrics}");
    assert!(metrics.contains("pgoutbox_retention_partitions_kept{log=\"events\"} 0"), "{metrics}");
    for relay in [first, second] {
        assert!(relay.stop().await.complete);
    }
    let mut seen: Vec<i64> = recorder.seen().iter().map(|one| one.payload.parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
    database.drop().await;
}

#[tokio::test]
async fn a_relay_says_what_keeps_a_partition_and_drops_it_afterwards() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['a.b'], 'recorder')").await;
    // As if the outbox had been used for long.
    looked_for_long(&database).await;
    database
        .execute(
            "select outbox_internal.make_partition_at('events', '30 days', now() - interval '90 days');
             insert into outbox.events (topic, payload, created_at) values ('a.c', '1', now() - interval '90 days');
             insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, position, created_at,
                                              topic, payload, headers, priority)
             select 1, 'shop', 'timeout', 1, position, created_at, 'a.c', '1', '{}', 0 from outbox.events",
        )
        .await;
    let recorder = Recorder::new();
    let mut relay = RelayBox::start_with(&database, |builder| {
        builder.settings(looking_often("relay", Laggard::Keep)).sink(recorder.clone())
    })
    .await;
    database
        .eventually(
            "select kept_by = 'dead letters of shop' from outbox.retention_status where kept_by is not null",
        )
        .await;
    relay.wait(|signal| *signal == Signal::RetentionLooked).await;
    relay.wait(|signal| *signal == Signal::RetentionLooked).await;
    let metrics = relay.telemetry.render();
    assert!(metrics.contains("pgoutbox_retention_partitions_kept{log=\"events\"} 1"), "{metrics}");
    let kept = "kept by dead letters of shop";
    for command in ["status", "check"] {
        let printed = database.pgoutbox(&[command]);
        assert!(String::from_utf8_lossy(&printed.stderr).contains(kept), "{command}: {printed:?}");
    }
    database.execute("select outbox.discard('shop')").await;
    relay.wait(|signal| *signal == Signal::PartitionDropped).await;
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    relay.stop().await;
    database.drop().await;
}
