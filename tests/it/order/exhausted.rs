//! What happens to a key when one of its events becomes a dead letter, and when a newer event waits.

use std::collections::BTreeSet;

use super::{ByKey, Log, publish, relay};
use crate::support::{Database, RelayBox};

/// A relay that delivers to a subscription with these options; the first event of the key `a` always fails
/// until `open` is set.
async fn world(options: &str) -> (Database, Log, RelayBox, std::sync::Arc<std::sync::atomic::AtomicBool>) {
    let database = Database::new().await;
    database
        .execute(format!(
            "select outbox.subscribe('ordered', array['**'], 'by_key', ordering => 'key', {options}, \
             retry => '{{\"schedule\": [\"50ms\"]}}')"
        ))
        .await;
    let log = Log::default();
    let open = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let answer = open.clone();
    let first = std::sync::Mutex::new(None);
    let sink: ByKey = log.sink(move |attempt| {
        if attempt.key.as_deref() != Some("a") {
            return true;
        }
        let bad = *first.lock().unwrap().get_or_insert(attempt.position);
        attempt.position != bad || answer.load(std::sync::atomic::Ordering::Acquire)
    });
    let relay = relay(&database, "relay", &sink).await;
    (database, log, relay, open)
}

/// What `outbox.explain` says of the events of key `a`, in their order.
async fn explained(database: &Database) -> Vec<String> {
    sqlx::query_scalar(
        "select one.status from outbox.events as event, outbox.explain(event.id) as one \
          where event.key = 'a' order by event.position",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
}

fn of(log: &Log, key: &str) -> Vec<i64> {
    log.delivered().into_iter().filter(|one| one.0 == key).map(|one| one.1).collect()
}

async fn end(database: Database, relay: RelayBox) {
    assert!(relay.stop().await.complete);
    database.drop().await;
}

#[tokio::test]
async fn a_key_goes_on_after_a_dead_letter_with_skip() {
    let (database, log, relay, _) = world("on_exhausted => 'skip'").await;
    publish(&database, &["a", "a", "b", "a"]).await;
    log.wait_for(3).await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 1);
    assert_eq!(of(&log, "a").len(), 2);
    end(database, relay).await;
}

#[tokio::test]
async fn a_parked_key_waits_with_all_its_later_events_and_is_redriven_in_order() {
    let (database, log, relay, open) = world("on_exhausted => 'park'").await;
    publish(&database, &["a", "a", "b", "a"]).await;
    database.eventually("select count(*) = 1 from outbox.dead_letters").await;
    publish(&database, &["a", "b"]).await;
    log.wait_for(2).await;
    database.eventually("select waiting = 3 and reason = 'refused' from outbox.parked where key = 'a'").await;
    assert!(of(&log, "a").is_empty(), "nothing of it was sent");
    assert_eq!(explained(&database).await, ["dead_letter", "parked", "parked", "parked"]);
    // A relay that starts anew knows what is parked.
    assert!(relay.stop().await.complete);
    let relay = super::relay(&database, "next", &log.sink(|_| true)).await;
    publish(&database, &["a", "b"]).await;
    log.wait_for(3).await;
    database.eventually("select waiting = 4 from outbox.parked").await;
    open.store(true, std::sync::atomic::Ordering::Release);
    assert_eq!(database.count("select outbox.redrive('ordered')").await, 1);
    log.wait_for(8).await;
    log.check(&database).await;
    assert_eq!(database.count("select count(*) from outbox.parked").await, 0);
    // And nothing is parked for what comes then.
    publish(&database, &["a"]).await;
    log.wait_for(9).await;
    end(database, relay).await;
}

#[tokio::test]
async fn a_parked_key_goes_on_when_its_dead_letter_is_discarded_or_it_is_unparked() {
    let (database, log, relay, _) = world("on_exhausted => 'park'").await;
    publish(&database, &["a", "a"]).await;
    database.eventually("select waiting = 1 from outbox.parked").await;
    assert_eq!(database.count("select outbox.discard('ordered')").await, 1);
    log.wait_for(1).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    database
        .execute(
            "insert into outbox.parked_keys (subscription_id, key, dead_letter_id) \
             select id, 'c', 1 from outbox.subscriptions",
        )
        .await;
    assert_eq!(database.count("select outbox.unpark('ordered', 'c')").await, 1);
    publish(&database, &["c"]).await;
    log.wait_for(2).await;
    end(database, relay).await;
}

#[tokio::test]
async fn a_halted_subscription_sends_nothing_and_goes_on_in_order_after_a_redrive_and_a_resume() {
    let (database, log, relay, open) = world("on_exhausted => 'halt'").await;
    publish(&database, &["a"]).await;
    database
        .eventually(
            "select not active and state_reason like 'halted: event % became a dead letter (%)' \
             from outbox.subscriptions",
        )
        .await;
    publish(&database, &["a", "b", "a"]).await;
    database.eventually("select count(*) = 3 from outbox.owed").await;
    assert!(log.delivered().is_empty());
    open.store(true, std::sync::atomic::Ordering::Release);
    assert_eq!(database.count("select outbox.redrive('ordered')").await, 1);
    database.execute("select outbox.resume('ordered')").await;
    log.wait_for(4).await;
    log.check(&database).await;
    end(database, relay).await;
}

#[tokio::test]
async fn only_the_newest_of_the_waiting_events_of_a_key_is_sent_and_the_others_are_counted() {
    let (database, log, relay, open) = world("\"coalesce\" => 'key'").await;
    // While the first is tried, the others wait; then it is a row that waits for its retry.
    database
        .execute("update outbox.subscriptions set retry = '{\"initial\": \"4s\", \"multiplier\": 1}'")
        .await;
    publish(&database, &["a"]).await;
    database
        .eventually("select count(*) = 1 from outbox.deliveries where attempt = 1 and lease_token is null")
        .await;
    publish(&database, &["a", "a", "b", "a"]).await;
    database.eventually("select count(*) = 4 from outbox.deliveries where key = 'a'").await;
    assert_eq!(explained(&database).await, ["retrying", "behind_key", "behind_key", "behind_key"]);
    open.store(true, std::sync::atomic::Ordering::Release);
    log.wait_for(2).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let newest = database.count("select max(position) from outbox.events where key = 'a'").await;
    assert_eq!(of(&log, "a"), [newest]);
    let superseded: BTreeSet<i64> =
        sqlx::query_scalar("select position from outbox.attempts where outcome = 'superseded'")
            .fetch_all(&database.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    assert_eq!(superseded.len(), 3, "{superseded:?}");
    assert!(!superseded.contains(&newest));
    assert_eq!(explained(&database).await[..3], ["superseded", "superseded", "superseded"]);
    let first = sqlx::query_scalar("select id from outbox.events order by position limit 1")
        .fetch_one(&database.pool)
        .await
        .unwrap();
    let mut connection = database.connection().await;
    let waited = pgoutbox::wait(&mut connection, first, std::time::Duration::from_secs(30)).await.unwrap();
    assert_eq!(waited.subscriptions.unwrap()[0].state, pgoutbox::SaidState::Superseded);
    drop(connection);
    end(database, relay).await;
}
