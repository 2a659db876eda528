//! Connections that break at random, transactions that commit late or not at all: each client's ledger is
//! complete and without repeats.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{
    Database,
    live::{Client, LiveBox},
    seed,
};

/// Clients, publishers, and transactions of each publisher.
const CLIENTS: u64 = 40;
const PUBLISHERS: u64 = 4;
const TRANSACTIONS: u64 = 60;

/// Publishes in transactions of which some overlap for long and some are rolled back.
async fn publisher(database: sqlx::PgPool, mut rng: StdRng, number: u64) {
    for transaction in 0..TRANSACTIONS {
        let mut open = database.begin().await.unwrap();
        for n in 0..rng.random_range(1..6) {
            let payload = format!("\"{number}-{transaction}-{n}\"");
            sqlx::query("select outbox.publish('a.b', $1::text::jsonb)")
                .bind(payload)
                .execute(&mut *open)
                .await
                .unwrap();
            let pause = rng.random_range(0..4);
            sqlx::query(sqlx::AssertSqlSafe(format!("select pg_sleep({pause} / 1000.0)")))
                .execute(&mut *open)
                .await
                .unwrap();
        }
        if rng.random_ratio(1, 10) {
            open.rollback().await.unwrap();
        } else {
            open.commit().await.unwrap();
        }
    }
}

/// Follows until the event `end` is there, and breaks the connection again and again.
async fn follower(
    gateways: [std::net::SocketAddr; 2],
    mut rng: StdRng,
    begin: String,
) -> BTreeMap<String, u32> {
    let mut seen = BTreeMap::new();
    let mut token = begin;
    loop {
        let mut client = Client::connect(gateways[rng.random_range(0..2)]).await;
        client.subscribe("a", &["a.*"], json!({ "since": token })).await;
        let stay = rng.random_range(0..60);
        for _ in 0..stay {
            let message = client.next().await.unwrap();
            match message["type"].as_str().unwrap() {
                "event" => {
                    let payload = message["event"]["payload"].as_str().unwrap().to_owned();
                    let is_end = payload == "end";
                    *seen.entry(payload).or_default() += 1;
                    token = message["token"].as_str().unwrap().to_owned();
                    if is_end {
                        // What committed before the end is there as well, once the client has caught up.
                        client.wait_for_the_rest(&mut seen).await;
                        return seen;
                    }
                }
                "caught_up" => token = message["token"].as_str().unwrap().to_owned(),
                other => assert_eq!(other, "lagging", "{message}"),
            }
        }
    }
}

impl Client {
    async fn wait_for_the_rest(&mut self, seen: &mut BTreeMap<String, u32>) {
        loop {
            let message = self.next().await.unwrap();
            match message["type"].as_str().unwrap() {
                "event" => {
                    *seen.entry(message["event"]["payload"].as_str().unwrap().to_owned()).or_default() += 1
                }
                "caught_up" => return,
                _ => {}
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn random_disconnects_lose_nothing_and_repeat_nothing() {
    let database = Database::new().await;
    let poll = Duration::from_secs(20);
    // One gateway with a small ring, so that clients read the log, too.
    let small = pgoutbox::live::Settings { buffer: 65_536, poll, ..Default::default() };
    let gateways =
        [LiveBox::start(&database).await, LiveBox::start_with(&database, small, Default::default()).await];
    storm(&database, gateways).await;
    database.drop().await;
}

/// Clients of two gateways, whose connections break at random, see each event once.
pub(super) async fn storm(database: &Database, gateways: [LiveBox; 2]) {
    let seed = seed();
    let addresses = [gateways[0].address, gateways[1].address];
    let begin = gateways[0].connect().await.subscribe("a", &["a.*"], json!({})).await;
    let rng = |number: u64| StdRng::seed_from_u64(seed.wrapping_add(number));
    let (mut publishers, mut clients) = (JoinSet::new(), JoinSet::new());
    for number in 0..CLIENTS {
        clients.spawn(follower(addresses, rng(1_000 + number), begin.clone()));
    }
    for number in 0..PUBLISHERS {
        publishers.spawn(publisher(database.pool.clone(), rng(number), number));
    }
    publishers.join_all().await;
    database.execute("select outbox.publish('a.b', '\"end\"')").await;
    let committed: Vec<String> = sqlx::query_scalar("select payload #>> '{}' from outbox.events order by 1")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    let expected: BTreeMap<String, u32> = committed.into_iter().map(|payload| (payload, 1)).collect();
    let ledgers = tokio::time::timeout(Duration::from_secs(120), clients.join_all()).await.unwrap();
    for ledger in ledgers {
        assert!(ledger == expected, "seed {seed}: {:?}", differences(&expected, &ledger));
    }
    for gateway in gateways {
        gateway.stop().await;
    }
}

fn differences(expected: &BTreeMap<String, u32>, seen: &BTreeMap<String, u32>) -> Vec<(String, u32)> {
    let missing = expected.keys().filter(|key| !seen.contains_key(*key)).map(|key| (key.clone(), 0));
    missing
        .chain(
            seen.iter()
                .filter(|(key, count)| expected.get(*key) != Some(count))
                .map(|(key, count)| (key.clone(), *count)),
        )
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_catches_up_while_others_publish_is_given_a_token() {
    const TIMES: u32 = 100;
    let database = Database::new().await;
    let gateway = LiveBox::start(&database).await;
    let mut publishers = JoinSet::new();
    for _ in 0..2 {
        let pool = database.pool.clone();
        publishers.spawn(async move {
            loop {
                sqlx::query("select outbox.publish('a.b', '1')").execute(&pool).await.unwrap();
            }
        });
    }
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = gateway.connect().await;
        clients.spawn(async move {
            for number in 0..TIMES {
                let id = number.to_string();
                client.subscribe(&id, &["a.*"], json!({})).await;
                let caught_up = client.wait("caught_up").await;
                assert!(caught_up["token"].is_string(), "{caught_up}");
                client.send(json!({ "type": "unsubscribe", "id": id })).await;
                client.wait("unsubscribed").await;
            }
        });
    }
    clients.join_all().await;
    publishers.shutdown().await;
    gateway.stop().await;
    database.drop().await;
}
