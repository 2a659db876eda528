//! `run --once` delivers what is due and ends.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use serde_json::json;

use crate::support::{Database, Good};

async fn run_once(database: &Database) -> Output {
    let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(["run", "--once"])
        .env_clear()
        .env("DATABASE_URL", database.relay_url())
        .env("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1/32")
        .env("PGOUTBOX__EGRESS__ALLOW_HTTP", "true")
        .env("PGOUTBOX__HTTP__LISTEN", "off")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(Duration::from_secs(60), child).await.expect("it ends").unwrap()
}

#[tokio::test]
async fn a_relay_that_runs_once_delivers_what_is_due_and_leaves_what_waits() {
    let database = Database::new().await;
    let mut good = Good::start().await;
    sqlx::query(
        "select outbox.subscribe('all', '{**}', 'webhook', $1), \
                outbox.subscribe('paused', '{**}', 'webhook', $1)",
    )
    .bind(json!({ "url": good.url }))
    .execute(&database.pool)
    .await
    .unwrap();
    database.execute("select outbox.pause('paused')").await;
    let publish = "select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(1, 60) as n";
    database.execute(publish).await;
    database.execute("select outbox.publish('later', '1', deliver_after => now() + interval '1 hour')").await;
    let output = run_once(&database).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(good.take(60).await.len(), 60);
    assert!(good.next(Duration::from_millis(1)).await.is_none(), "nothing is sent twice");
    let owed = "select count(*) from outbox.owed join outbox.subscriptions as s on s.id = subscription_id \
                 where s.name = ";
    assert_eq!(database.count(&format!("{owed}'all'")).await, 1, "what is for later");
    assert_eq!(database.count(&format!("{owed}'paused'")).await, 61);
    assert_eq!(database.count("select count(*) from outbox.pages").await, 0, "nothing stays leased");

    // There is nothing to do.
    assert_eq!(run_once(&database).await.status.code(), Some(0));
    assert!(good.next(Duration::from_millis(1)).await.is_none());
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_runs_once_does_not_wait_for_a_retry_nor_for_a_destination_that_is_down() {
    let database = Database::new().await;
    database
        .execute(
            r#"select outbox.subscribe('down', '{**}', 'webhook', '{"url": "http://127.0.0.1:9/"}',
                                       retry => '{"initial": "1h"}');
               select outbox.publish('shop.sold', '1')"#,
        )
        .await;
    let output = run_once(&database).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let waits = "select count(*) from outbox.deliveries where due_at > now() + interval '30 minutes'";
    assert_eq!(database.count(waits).await, 1, "for its retry");
    // A breaker opens before all have been tried.
    database.execute("select outbox.publish('shop.sold', '1') from generate_series(1, 500)").await;
    let output = run_once(&database).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("does not get on"), "{output:?}");
    assert_eq!(database.count("select count(*) from outbox.owed").await, 501);
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_runs_once_on_a_copy_sends_nothing_and_says_why() {
    let database = Database::new().await;
    let mut good = Good::start().await;
    sqlx::query("select outbox.subscribe('all', '{**}', 'webhook', $1)")
        .bind(json!({ "url": good.url }))
        .execute(&database.pool)
        .await
        .unwrap();
    assert_eq!(run_once(&database).await.status.code(), Some(0), "it is this database's outbox now");
    database.execute("select outbox.publish('shop.sold', '1')").await;
    let copy = database.copied().await;
    let output = run_once(&copy).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.contains("nothing was sent") && said.contains("pgoutbox adopt"), "{said}");
    assert!(!said.contains("does not get on"), "{said}");
    assert!(good.next(Duration::from_millis(1)).await.is_none());
    copy.drop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_relay_that_runs_once_where_it_cannot_work_ends_too() {
    let database = Database::empty_beside_roles().await;
    let output = run_once(&database).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    database.drop().await;
}
