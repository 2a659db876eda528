//! A relay that delivers an ordered subscription knows of all that waits for it. Polls are slow here, so that
//! what only a poll finds is noticed.

use std::time::Duration;

use pgoutbox::relay::Settings;

use super::{Log, publish};
use crate::support::{Database, Recorder, RelayBox, relay::settings};

const SUBSCRIBE: &str = "select outbox.subscribe('ordered', array['**'], 'by_key', ordering => 'key')";

fn seldom(name: &str) -> Settings {
    Settings { poll: Some(Duration::from_secs(300)), ..settings(name) }
}

#[tokio::test]
async fn a_backlog_that_suspects_divide_is_delivered_without_a_poll() {
    let database = Database::new().await;
    publish(&database, &["a", "b", "a", "c", "a", "b", "c", "a", "b", "a", "c", "a"]).await;
    // Nobody has subscribed yet: this moves the cursor behind them.
    let mut routing = RelayBox::start(&database, &Recorder::new()).await;
    routing.wait_asleep().await;
    assert!(routing.stop().await.complete);
    database.execute(SUBSCRIBE).await;
    database
        .execute(
            "insert into outbox.backlog
                    (subscription_id, positions, created_from, created_until, deaths, is_ordered)
             select 1, int8multirange(int8range(min(position), max(position), '[]')), min(created_at),
                    max(created_at), part % 3, true
               from (select position, created_at, ntile(6) over (order by position) as part
                       from outbox.events) as event
              group by part",
        )
        .await;
    let log = Log::default();
    let sink = log.sink(|_| true);
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(seldom("relay")).sink(sink.clone())).await;
    log.wait_for(12).await;
    log.check(&database).await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_relay_takes_over_from_a_dead_one_is_delivered_without_a_poll() {
    let database = Database::new().await;
    database.execute(SUBSCRIBE).await;
    let log = Log::default();
    let hangs = log.sink(|_| true).taking(Duration::from_secs(60));
    let lease = Duration::from_secs(2);
    let dying = Settings { lease, ..seldom("dying") };
    let dying = RelayBox::start_with(&database, |builder| builder.settings(dying).sink(hangs.clone())).await;
    publish(&database, &["a", "b", "a", "c", "a", "b"]).await;
    database.eventually("select exists (select from outbox.pages)").await;
    let next = log.sink(|_| true);
    let next = RelayBox::start_with(&database, |builder| {
        builder.settings(Settings { lease, ..seldom("next") }).sink(next.clone())
    })
    .await;
    dying.abort().await;
    // It can send to nobody, but takes over what the dead relay held.
    let third = Settings { lease, poll: Some(Duration::from_millis(200)), ..settings("third") };
    let third =
        RelayBox::start_with(&database, |builder| builder.settings(third).sink(Recorder::new())).await;
    log.wait_for(6).await;
    log.check(&database).await;
    for relay in [next, third] {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_events_that_another_relay_reads_are_delivered_without_a_poll() {
    const SUBSCRIPTIONS: usize = 8;
    let database = Database::new().await;
    database
        .execute(
            "select outbox.publish('order.test', '{}', key => 'key ' || n % 7) \
               from generate_series(1, 1200) as n",
        )
        .await;
    let log = Log::default();
    let sink = log.sink(|_| true);
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        relays.push(
            RelayBox::start_with(&database, |builder| builder.settings(seldom(name)).sink(sink.clone()))
                .await,
        );
    }
    for number in 0..SUBSCRIPTIONS {
        database
            .execute(format!(
                "select outbox.subscribe('ordered-{number}', array['**'], 'by_key', ordering => 'key', \
                 start => 'beginning')"
            ))
            .await;
    }
    log.wait_for(1_200 * SUBSCRIPTIONS).await;
    log.check(&database).await;
    for relay in relays {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}
