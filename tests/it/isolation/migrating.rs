//! The schema changes beneath publishers.

use std::time::{Duration, Instant};

use pgoutbox::store::schema;
use sqlx::Executor as _;

use crate::{migrate::migrated_before, migrations::migrations, support::Database};

/// Longest time for which a publisher may be stopped.
const LIMIT: Duration = Duration::from_millis(500);

/// The longest time that one of two publishers took for a commit while all other migrations were applied.
async fn longest_while_migrating() -> Duration {
    let database = migrated_before(&(2, "subscriptions".to_owned())).await;
    // A log that has grown.
    database
        .execute(
            "insert into outbox.events (topic, payload) \
             select 'shop.sold', '1' from generate_series(1, 200000)",
        )
        .await;
    let (applied, one, other) =
        tokio::join!(schema::run(&database.options), publish(&database), publish(&database));
    assert_eq!(applied.unwrap().len(), migrations().len() - 1);
    database.drop().await;
    one.max(other)
}

/// Publishes until all migrations are applied. Returns the longest time that a commit took.
async fn publish(database: &Database) -> Duration {
    let mut publisher = database.connection().await;
    let (mut longest, mut complete) = (Duration::ZERO, false);
    while !complete {
        let before = Instant::now();
        publisher.execute("select outbox.publish('shop.sold', '1')").await.unwrap();
        longest = longest.max(before.elapsed());
        let applied = "select count(*) from outbox.migrations";
        let applied: i64 = sqlx::query_scalar(applied).fetch_one(&mut publisher).await.unwrap();
        complete = usize::try_from(applied).unwrap() == migrations().len();
    }
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn publishers_are_stopped_for_less_than_half_a_second_by_all_migrations() {
    let mut stalls = Vec::new();
    // The machine may stop all of them for as long, though hardly three times.
    while stalls.len() < 3 && stalls.last().is_none_or(|last| *last > LIMIT) {
        stalls.push(longest_while_migrating().await);
    }
    eprintln!("the longest stops of publishers: {stalls:?}");
    assert!(stalls.last().is_some_and(|last| *last < LIMIT), "{stalls:?}");
}
