//! Relays that end, fail and share, while publishers go on.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{Log, relay};
use crate::support::{Database, RelayBox, pause, seed};

/// Publishers with keys of their own: each event of a key is committed before the next is written.
async fn publish(database: &Database, publisher: u64, seed: u64, events: usize) {
    let mut rng = StdRng::seed_from_u64(seed ^ publisher);
    let mut connection = database.connection().await;
    let mut left = events;
    while left > 0 {
        let count = rng.random_range(1..=8).min(left);
        left -= count;
        let keys: Vec<String> = (0..count)
            .map(|_| match rng.random_range(0..10) {
                0..6 => format!("hot-{publisher}-{}", rng.random_range(0..3)),
                _ => format!("cold-{publisher}-{}", rng.random_range(0..500)),
            })
            .collect();
        let commits = rng.random_bool(0.9);
        let mut transaction = sqlx::Connection::begin(&mut connection).await.unwrap();
        sqlx::query(
            "insert into outbox.events (topic, payload, key) \
             select 'order.test', '{}', key from unnest($1::text[]) with ordinality as one (key, n) \
              order by n",
        )
        .bind(&keys)
        .execute(&mut *transaction)
        .await
        .unwrap();
        if rng.random_bool(0.1) {
            pause(Duration::from_millis(rng.random_range(1..40))).await;
        }
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
    }
}

/// Publishers write `events` each, while relays fail one attempt in so many and are ended without a drain.
async fn storm(events: usize, relays: usize, kills: usize, failures: u32) {
    let seed = seed();
    let mut rng = StdRng::seed_from_u64(seed);
    let database = Database::new().await;
    for (name, more) in [("all", ""), ("narrow", ", max_in_flight => 4")] {
        database
            .execute(format!(
                "select outbox.subscribe('{name}', array['**'], 'by_key', ordering => 'key'{more}, \
                 retry => '{{\"initial\": \"20ms\", \"multiplier\": 1, \"max_attempts\": 1000}}')"
            ))
            .await;
    }
    let log = Log::default();
    let chance = Mutex::new(StdRng::seed_from_u64(seed ^ 1));
    let sink =
        log.sink(move |_| !chance.lock().unwrap().random_ratio(1, failures)).taking(Duration::from_millis(1));
    let mut running: HashMap<usize, RelayBox> = HashMap::new();
    for number in 0..relays {
        running.insert(number, relay(&database, &format!("relay-{number}"), &sink).await);
    }
    let publishing = async {
        futures_util::future::join_all((0..4).map(|one| publish(&database, one, seed, events))).await;
    };
    let killing = async {
        for kill in 0..kills {
            pause(Duration::from_millis(rng.random_range(200..1_500))).await;
            let victim = rng.random_range(0..relays);
            running.remove(&victim).unwrap().abort().await;
            running.insert(victim, relay(&database, &format!("relay-{victim}-{kill}"), &sink).await);
        }
    };
    futures_util::future::join(publishing, killing).await;
    let committed = database.count("select count(*) from outbox.events").await;
    log.wait_for(usize::try_from(committed).unwrap() * 2).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(log.check(&database).await > usize::try_from(committed).unwrap() * 2, "some attempts failed");
    for relay in running.into_values() {
        assert!(relay.stop().await.complete);
    }
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_relay_keeps_the_order_of_each_key_while_attempts_fail() {
    storm(500, 1, 0, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_relays_that_end_without_a_drain_keep_the_order_of_each_key() {
    storm(600, 3, 4, 20).await;
}
