//! Rows of the outbox that another session has locked: their verdicts wait, and those of others do not.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use pgoutbox::{
    RelaySettings,
    delivery::{Outcome, Reason},
};

use crate::support::{Database, Recorder, RelayBox, recorder::Seen, relay::settings};

/// Looks often for what is due, as a relay does whose leases end.
fn looking_often() -> RelaySettings {
    RelaySettings {
        poll: Some(Duration::from_millis(200)),
        lease: Duration::from_secs(5),
        ..settings("relay")
    }
}

/// Sends `count` events while one row of the table is locked, until after its lease has ended.
async fn while_one_is_locked(publish: &str, count: usize, table: &str) {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(looking_often()).sink(recorder.clone()))
            .await;
    let closed = recorder.gate.clone().write_owned().await;
    for _ in 0..count {
        database.execute(publish).await;
        database.execute("select pg_sleep(0.01)").await; // a page of its own
    }
    // Slow start: not all of them are leased at once.
    database.eventually(&format!("select count(*) >= 4 from {table} where lease_token is not null")).await;
    let mut session = database.connection().await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "begin; select from {table} where id = (select min(id) from {table} where lease_token is not null) for update"
    )))
    .execute(&mut session)
    .await
    .unwrap();
    drop(closed);
    recorder.wait_for(count).await;
    database.eventually_within(Duration::from_secs(10), &format!("select count(*) = 1 from {table}")).await;
    database
        .eventually_within(Duration::from_secs(20), &format!("select bool_and(due_at < now()) from {table}"))
        .await;
    sqlx::raw_sql("commit").execute(&mut session).await.unwrap();
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    assert_eq!(recorder.seen().len(), count, "none is sent twice");
    database.drop().await;
}

#[tokio::test]
async fn a_locked_delivery_delays_no_other_verdict_and_is_not_sent_again() {
    let publish =
        "select outbox.publish('a.timed', '1', deliver_after => clock_timestamp() + interval '50 ms')";
    while_one_is_locked(publish, 40, "outbox.deliveries").await;
}

#[tokio::test]
async fn a_locked_page_delays_no_other_verdict_and_is_not_sent_again() {
    while_one_is_locked("select outbox.publish('a.plain', '1')", 20, "outbox.pages").await;
}

#[tokio::test]
async fn an_answer_of_410_is_obeyed_while_somebody_has_locked_the_subscription() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('left', array['left'], 'recorder')").await;
    database.execute("select outbox.subscribe('other', array['other'], 'recorder')").await;
    let answer = |seen: &Seen| match seen.subscription.as_str() {
        "left" => Outcome::Gone,
        _ => Outcome::Delivered,
    };
    let recorder = Recorder::answering(answer);
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(looking_often()).sink(recorder.clone()))
            .await;
    let mut session = database.connection().await;
    let lock = "begin; select from outbox.subscriptions where name = 'left' for update";
    sqlx::raw_sql(lock).execute(&mut session).await.unwrap();
    database
        .execute("insert into outbox.events (topic, payload) select 'left', '1' from generate_series(1, 20)")
        .await;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for count in 1..=30 {
        pace.tick().await;
        database.execute("select outbox.publish('other', '1')").await;
        let other = |seen: &[Seen]| seen.iter().filter(|one| one.subscription == "other").count();
        recorder.wait_until(|seen| other(seen) == count).await;
    }
    let seen = recorder.seen();
    let left: Vec<&Seen> = seen.iter().filter(|one| one.subscription == "left").collect();
    let events: HashSet<_> = left.iter().map(|one| one.event).collect();
    assert!(!left.is_empty() && left.len() == events.len(), "{} for {} events", left.len(), events.len());
    sqlx::raw_sql("rollback").execute(&mut session).await.unwrap();
    database.eventually("select state = 'gone' from outbox.subscriptions where name = 'left'").await;
    assert!(relay.stop().await.complete);
    database.drop().await;
}

/// Publishes to a stranger that asks for a pause and to a healthy subscription, in turns, and waits each time
/// until the latter is settled.
async fn served_beside_strangers(database: &Database, strangers: std::ops::Range<u32>) -> Duration {
    let began = Instant::now();
    for stranger in strangers {
        database.execute(format!("select outbox.publish('stranger.{stranger}', '1')")).await;
        database.execute("select outbox.publish('healthy', '1')").await;
        database
            .eventually(
                "select not exists (select from outbox.owed where subscription_id = \
                     (select id from outbox.subscriptions where name = 'healthy'))",
            )
            .await;
    }
    began.elapsed()
}

#[tokio::test]
async fn settling_waits_for_no_change_of_a_subscription_that_is_left_open() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('healthy', array['healthy'], 'recorder')").await;
    for stranger in 0..12 {
        database
            .execute(format!(
                "select outbox.subscribe('stranger-{stranger}', array['stranger.{stranger}'], 'recorder')"
            ))
            .await;
    }
    let after = Some(Duration::from_secs(600));
    let recorder = Recorder::answering(move |seen| match seen.subscription.as_str() {
        "healthy" => Outcome::Delivered,
        _ => Outcome::Retry { reason: Reason::RateLimited, after },
    });
    let relay = RelayBox::start(&database, &recorder).await;
    let free = served_beside_strangers(&database, 0..6).await;
    let mut session = database.connection().await;
    let change = "begin; set constraints all immediate; select outbox.pause('stranger-0')";
    sqlx::raw_sql(change).execute(&mut session).await.unwrap();
    let beside = served_beside_strangers(&database, 6..12).await;
    sqlx::raw_sql("rollback").execute(&mut session).await.unwrap();
    let paused = "select count(*) = 12 from outbox.asked_pauses";
    database.eventually(paused).await;
    assert!(beside < free * 4 + Duration::from_secs(2), "{beside:?}, and {free:?} before");
    assert!(relay.stop().await.complete);
    database.drop().await;
}
