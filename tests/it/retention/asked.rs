//! Redrives ask for old events while these are removed.

use sqlx::{Connection as _, Executor as _};
use tokio::task::JoinSet;

use super::{at, dead_letters, done, drop_one, event, kept_by, make_all, routed};
use crate::support::Database;

/// Redrives put old events back while they are removed: none loses its event, in either mode.
#[tokio::test(flavor = "multi_thread")]
async fn redrives_beside_drops_lose_no_event() {
    const LETTERS: i64 = 400;
    for laggard in ["keep", "dead-letter"] {
        let database = Database::new().await;
        database.execute("select outbox.subscribe('shop', array['a.**'], 'recorder')").await;
        database
            .execute(format!(
                "insert into outbox.events (topic, payload, created_at)
                 select 'a.b', to_jsonb(n), {} from generate_series(1, {LETTERS}) as n",
                at(0.0)
            ))
            .await;
        make_all(&database, "events", 0.0).await;
        routed(&database).await;
        dead_letters(&database).await;
        let mut tasks = JoinSet::new();
        for _ in 0..2 {
            let mut connection = database.connection().await;
            tasks.spawn(async move {
                loop {
                    let redriven: i64 = sqlx::query_scalar("select outbox.redrive('shop', max_rows => 5)")
                        .fetch_one(&mut connection)
                        .await
                        .unwrap();
                    if redriven == 0 {
                        return;
                    }
                    // As relays that fail again: other letters go on meanwhile.
                    connection.execute("delete from outbox.deliveries where position % 3 = 0").await.unwrap();
                }
            });
        }
        let lacking = "select count(*) from outbox.deliveries as one
                        where not exists (select from outbox.events as event where event.position = one.position)";
        while !tasks.is_empty() {
            drop_one(&database, "events", laggard, 14.0).await;
            while let Some(ended) = tasks.try_join_next() {
                ended.unwrap();
            }
        }
        assert_eq!(database.count(lacking).await, 0, "{laggard}");
        assert!(database.count("select count(*) from outbox.deliveries").await > LETTERS / 2, "{laggard}");
        database.drop().await;
    }
}

/// A redrive that is not committed yet, although later ones are.
#[tokio::test]
async fn a_redrive_in_an_open_transaction_keeps_what_it_asked_for() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['a.**'], 'recorder')").await;
    event(&database, 1, 0.0).await;
    make_all(&database, "events", 0.0).await;
    routed(&database).await;
    dead_letters(&database).await;
    let mut open = database.connection().await;
    let mut transaction = open.begin().await.unwrap();
    transaction.execute("select outbox.redrive('shop')").await.unwrap();
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at) \
                  values (1, now(), 99, now())",
        )
        .await;
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "locked");
    transaction.commit().await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "nothing");
    assert_eq!(kept_by(&database).await.as_deref(), Some("deliveries of shop"));
    database.drop().await;
}

/// The snapshot of a session may show what has left since.
#[tokio::test]
async fn a_redrive_with_an_old_snapshot_fails_rather_than_losing_its_event() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('shop', array['a.**'], 'recorder')").await;
    event(&database, 1, 0.0).await;
    routed(&database).await;
    dead_letters(&database).await;
    let mut session = database.connection().await;
    session.execute("begin isolation level repeatable read; select from outbox.events").await.unwrap();
    assert_eq!(done(&drop_one(&database, "events", "dead-letter", 14.0).await), "deleted");
    let failed = session.execute("select outbox.redrive('shop')").await.unwrap_err();
    assert_eq!(failed.as_database_error().unwrap().code().as_deref(), Some("40001"), "{failed}");
    session.execute("rollback").await.unwrap();
    assert_eq!(database.count("select outbox.redrive('shop')").await, 1);
    assert_eq!(database.count("select count(*) from outbox.events").await, 1, "it was put back");
    database.drop().await;
}
