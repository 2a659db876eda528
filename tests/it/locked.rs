//! Rows of the outbox that another session has locked: their verdicts wait, and those of others do not.

use std::time::Duration;

use pgoutbox::RelaySettings;

use crate::support::{Database, Recorder, RelayBox, relay::settings};

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
