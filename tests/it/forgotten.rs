//! What was removed of the log is known to those who had not come to it.

use pgoutbox::{
    Position,
    store::{Forgotten, Store},
};
use sqlx::{Connection as _, Executor as _};

use crate::{channels::store, support::Database};

/// Transaction id of the event with this payload.
async fn xid(database: &Database, payload: i64) -> String {
    let sql = "select xid::text from outbox.events where payload = to_jsonb($1)";
    sqlx::query_scalar(sql).bind(payload).fetch_one(&database.pool).await.unwrap()
}

async fn known(store: &Store) -> Option<String> {
    store.forgotten().await.unwrap().and_then(|known| known.xid)
}

/// Publishes one event for each of these payloads, each in a transaction of its own.
async fn publish(database: &Database, payloads: std::ops::RangeInclusive<i64>) {
    for payload in payloads {
        database.execute(format!("select outbox.publish('a.b', '{payload}')")).await;
    }
}

#[tokio::test]
async fn the_highest_transaction_and_the_newest_time_of_what_was_deleted_are_kept() {
    let database = Database::new().await;
    let store = store(&database).await;
    publish(&database, 1..=4).await;
    database.execute("delete from outbox.events where payload = '99'").await;
    database.execute("delete from outbox.events_default where false").await;
    assert_eq!(store.forgotten().await.unwrap(), None, "nothing was removed");
    let (second, third) = (xid(&database, 2).await, xid(&database, 3).await);
    let newest = "select created_at from outbox.events where payload = '2'";
    let newest = sqlx::query_scalar(newest).fetch_one(&database.pool).await.unwrap();
    let mut open = database.connection().await;
    let mut transaction = open.begin().await.unwrap();
    transaction.execute("delete from outbox.events where payload in ('1', '2')").await.unwrap();
    assert_eq!(store.forgotten().await.unwrap(), None, "it is not committed");
    transaction.commit().await.unwrap();
    let removed = Forgotten { xid: Some(second.clone()), created_at: newest, position: Position(2) };
    assert_eq!(store.forgotten().await.unwrap(), Some(removed.clone()));
    database.execute("begin; delete from outbox.events; rollback").await;
    assert_eq!(store.forgotten().await.unwrap(), Some(removed), "it was rolled back");
    // From the partition itself.
    database.execute("delete from outbox.events_default where payload = '3'").await;
    assert_eq!(known(&store).await, Some(third.clone()));
    // An older one changes nothing, and what redrive puts back has no transaction id of its own.
    let back = "insert into outbox.events (xid, topic, payload) values ('1', 'a.b', '5')";
    database.execute(back).await;
    database.execute("with gone as (delete from outbox.events where payload = '5') select 1").await;
    assert_eq!(known(&store).await, Some(third));
    store.close().await;
    database.drop().await;
}

#[tokio::test]
async fn truncating_the_log_or_a_partition_of_it_counts() {
    let database = Database::new().await;
    let store = store(&database).await;
    publish(&database, 1..=2).await;
    let (last, newest) = (xid(&database, 2).await, "select max(created_at) from outbox.events");
    let newest = sqlx::query_scalar(newest).fetch_one(&database.pool).await.unwrap();
    database.execute("truncate outbox.events").await;
    let removed = Forgotten { xid: Some(last), created_at: newest, position: Position(2) };
    assert_eq!(store.forgotten().await.unwrap(), Some(removed.clone()));
    database.execute("truncate outbox.events").await;
    assert_eq!(store.forgotten().await.unwrap(), Some(removed), "there was nothing");
    publish(&database, 3..=3).await;
    let third = xid(&database, 3).await;
    database.execute("truncate outbox.events_default").await;
    assert_eq!(known(&store).await, Some(third));
    store.close().await;
    database.drop().await;
}

#[tokio::test]
async fn a_partition_that_is_watched_or_announced_before_it_is_dropped_counts() {
    let database = Database::new().await;
    let store = store(&database).await;
    database
        .execute(
            "create table outbox.events_old partition of outbox.events
                 for values from ('2025-01-01') to ('2026-01-01')",
        )
        .await;
    let watch = "select outbox_internal.watch_partitions()::bigint";
    assert_eq!(database.count(watch).await, 1);
    assert_eq!(database.count(watch).await, 0, "the second time");
    let insert = "insert into outbox.events (topic, payload, created_at) values ('a.b', '1', '2025-05-05'), \
                  ('a.b', '2', '2025-05-06')";
    database.execute(insert).await;
    let first = xid(&database, 1).await;
    database.execute("delete from outbox.events_old where payload = '1'").await;
    assert_eq!(known(&store).await, Some(first));
    database
        .execute("insert into outbox.events (topic, payload, created_at) values ('a.b', '3', '2025-06-06')")
        .await;
    let third = xid(&database, 3).await;
    database
        .execute(
            "begin; select outbox_internal.forget_all_of('outbox.events_old');
             drop table outbox.events_old; commit",
        )
        .await;
    assert_eq!(known(&store).await, Some(third));
    store.close().await;
    database.drop().await;
}
