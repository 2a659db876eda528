//! Nothing begins under an old version of a subscription, also of what waits behind a batch.

use std::time::Duration;

use pgoutbox::relay::{Settings, telemetry::Signal};
use serde_json::{Value, json};

use crate::{
    support::{Database, Good, RelayBox},
    webhook_relay::{publish, relay_settings, start, subscribe},
};

const EVENTS: i32 = 80;

/// A slow receiver of batches, with one request under way and others that wait behind it.
struct Slow {
    database: Database,
    receiver: Good,
    relay: RelayBox,
}

fn config(receiver: &Good) -> Value {
    json!({"url": receiver.url, "batch": {"max": 5, "wait": "50ms"}})
}

impl Slow {
    async fn new() -> Self {
        let database = Database::new().await;
        let receiver = Good::counting(Duration::from_millis(400)).await;
        subscribe(&database, "shop", "**", config(&receiver), json!({})).await;
        let settings = Settings { drain: Duration::from_secs(10), ..relay_settings("relay") };
        let relay = start(&database, settings).await;
        publish(&database, "a.b", EVENTS).await;
        let mut looks = tokio::time::interval(Duration::from_millis(5));
        while receiver.switch.requests() == 0 {
            looks.tick().await;
        }
        Self { database, receiver, relay }
    }

    /// Makes a change and waits until the relay follows it. Returns the requests that had begun by then.
    async fn change(&mut self, sql: &str) -> u64 {
        self.database.execute(sql).await;
        // A routing step notices it, also where nothing is to be routed.
        self.relay.wait(|signal| matches!(signal, Signal::Reloaded { generation } if *generation > 2)).await;
        self.receiver.switch.requests()
    }
}

#[tokio::test]
async fn after_a_pause_no_batch_begins() {
    let mut slow = Slow::new().await;
    let begun = slow.change("select outbox.pause('shop')").await;
    slow.database
        .eventually("select count(*) filter (where lease_token is not null) = 0 from outbox.owed")
        .await;
    assert_eq!(slow.receiver.switch.requests(), begun);
    assert!(begun < 16, "all had begun before");
    slow.database.execute("select outbox.resume('shop')").await;
    slow.database.eventually("select not exists (select from outbox.owed)").await;
    assert!(slow.relay.stop().await.complete);
    slow.database.drop().await;
}

#[tokio::test]
async fn after_a_new_destination_no_batch_begins_at_the_old_one() {
    let mut slow = Slow::new().await;
    let next = Good::counting(Duration::ZERO).await;
    let change = format!("update outbox.subscriptions set config = '{}'", config(&next));
    let begun = slow.change(&change).await;
    slow.database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(slow.receiver.switch.requests(), begun);
    assert!(next.switch.requests() > 0, "the rest goes to the new one");
    assert!(slow.relay.stop().await.complete);
    slow.database.drop().await;
}

#[tokio::test]
async fn after_the_end_of_a_subscription_no_batch_begins() {
    let mut slow = Slow::new().await;
    let begun = slow.change("select outbox.unsubscribe('shop')").await;
    slow.database.eventually("select not exists (select from outbox.owed)").await;
    assert!(slow.relay.stop().await.complete);
    assert_eq!(slow.receiver.switch.requests(), begun);
    assert_eq!(slow.database.count("select count(*) from outbox.dead_letters").await, 0);
    slow.database.drop().await;
}

#[tokio::test]
async fn a_drain_begins_no_batch_and_gives_the_rest_back() {
    let slow = Slow::new().await;
    let before = slow.receiver.switch.requests();
    let drained = slow.relay.stop().await;
    assert!(drained.complete, "{drained:?}");
    let begun = slow.receiver.switch.requests();
    assert!(begun <= before + 2, "{} requests began during the drain", begun - before);
    let left = slow.database.count("select count(*) from outbox.owed where lease_token is null").await
        + slow.database.count("select unrouted from outbox.log_status").await;
    assert!(left > 0 && left < i64::from(EVENTS), "{left} are left for the next relay");
    assert_eq!(slow.database.count("select coalesce(max(attempt), 0)::bigint from outbox.owed").await, 0);
    slow.database.drop().await;
}
