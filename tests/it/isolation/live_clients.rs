//! Live clients beside deliveries, and beside each other.

use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, future::join_all};
use pgoutbox::live::Settings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Latencies, Live, relay};
use crate::support::{
    Database,
    live::{Client, LiveBox},
};

/// Slow readers.
const SLOW: usize = 1_000;
/// Bytes that the gateway keeps in memory here.
const BUFFER: usize = 16 * 1024 * 1024;

fn gateway(database: &Database) -> LiveBox {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
    let settings = Settings { buffer: BUFFER, ..Settings::default() };
    LiveBox::start_apart(database, settings)
}

/// Clients that follow everything and read nothing.
async fn slow_readers(live: &LiveBox) -> Vec<Client> {
    let mut clients = Vec::new();
    while clients.len() < SLOW {
        let some = join_all((0..50).map(|_| async {
            let mut client = Client::narrow(live.address).await;
            client.subscribe("a", &["**"], json!({})).await;
            client.wait("caught_up").await;
            client
        }));
        clients.extend(some.await);
    }
    clients
}

/// Commits events that no webhook wants, a few MiB in all.
async fn publish_bulk(database: &Database, megabytes: usize) {
    for _ in 0..megabytes {
        database
            .execute(
                "select outbox.publish('bulk.order', to_jsonb(repeat(md5(n::text), 250))) \
                            from generate_series(1, 128) as n",
            )
            .await;
    }
}

/// Resident memory of this process, in MiB.
fn memory() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1_024
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|one, other| one.partial_cmp(other).unwrap());
    values[values.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn a_thousand_live_clients_that_read_nothing_do_not_delay_webhooks_and_take_bounded_memory() {
    let database = Database::new().await;
    let running = relay(&database).await;
    let mut webhook = Live::start(&database, "live.order").await;
    let gateway = gateway(&database);
    webhook.measure(&database, "warming up").await;
    let (mut alone, mut beside, mut grown) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..3 {
        alone.push(webhook.measure(&database, "without live clients").await.p99());
        let clients = slow_readers(&gateway).await;
        publish_bulk(&database, 32).await;
        let filled = memory();
        beside.push(webhook.measure(&database, "beside 1,000 that read nothing").await.p99());
        publish_bulk(&database, 32).await;
        grown.push(memory().saturating_sub(filled));
        if round == 2 {
            assert_eq!(gateway.gateway.room().connections(), SLOW, "each is still there");
        }
        drop(clients);
    }
    running.abort().await;
    gateway.stop().await;
    let (alone, beside) = (median(alone), median(beside));
    assert!(beside <= alone.mul_f64(1.5) + Duration::from_millis(5), "p99 {beside:.1?}; alone {alone:.1?}");
    assert!(median(grown.clone()) < 32, "MiB more for events that nobody reads: {grown:?}");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn webhooks_are_as_many_a_second_beside_a_thousand_live_clients_that_read_nothing() {
    let database = Database::new().await;
    let running = relay(&database).await;
    let mut webhook = Live::start(&database, "live.order").await;
    let gateway = gateway(&database);
    webhook.measure(&database, "warming up").await;
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        alone.push(throughput(&mut webhook, &database).await);
        let clients = slow_readers(&gateway).await;
        publish_bulk(&database, 32).await;
        beside.push(throughput(&mut webhook, &database).await);
        drop(clients);
    }
    eprintln!("alone {alone:.0?}, beside {beside:.0?} a second");
    running.abort().await;
    gateway.stop().await;
    let (alone, beside) = (median(alone), median(beside));
    assert!(beside >= 0.8 * alone, "{beside:.0} webhooks a second; alone {alone:.0}");
    database.drop().await;
}

/// Webhooks in a second.
async fn throughput(webhook: &mut Live, database: &Database) -> f64 {
    const WEBHOOKS: u16 = 2_000;
    let began = Instant::now();
    super::publish(database, "live.order", WEBHOOKS.into(), None).await;
    for _ in 0..WEBHOOKS {
        webhook.good.next(Duration::from_secs(60)).await.expect("it arrives");
    }
    f64::from(WEBHOOKS) / began.elapsed().as_secs_f64()
}

/// The time from commit until a client has an event, of a hundred.
async fn receipts(client: &mut Client, database: &Database, what: &str) -> Latencies {
    let mut connection = database.connection().await;
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut took = Vec::new();
    for n in 0..100 {
        pace.tick().await;
        sqlx::query("select outbox.publish('quick.order', jsonb_build_object('list', $2, 'n', $1))")
            .bind(n)
            .bind((0..300).collect::<Vec<i32>>())
            .execute(&mut connection)
            .await
            .unwrap();
        let committed = Instant::now();
        while client.wait("event").await["event"]["payload"]["n"] != n {}
        took.push(committed.elapsed());
    }
    let latencies = Latencies::new(took);
    eprintln!("{what}: {latencies}");
    latencies
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn live_clients_that_subscribe_without_end_or_filter_at_great_cost_do_not_delay_another() {
    let database = Database::new().await;
    let gateway = gateway(&database);
    let mut client = gateway.connect().await;
    client.subscribe("a", &["quick.*"], json!({})).await;
    receipts(&mut client, &database, "warming up").await;
    let alone = receipts(&mut client, &database, "alone").await;
    let mut noisy = JoinSet::new();
    for _ in 0..4 {
        let mut other = gateway.connect().await;
        noisy.spawn(async move {
            loop {
                other.subscribe("a", &["**"], json!({})).await;
                other.send(json!({ "type": "unsubscribe", "id": "a" })).await;
                other.wait("unsubscribed").await;
            }
        });
    }
    let beside_subscribers = receipts(&mut client, &database, "beside four that subscribe in a loop").await;
    noisy.shutdown().await;
    let costly = "payload.list.all(a, payload.list.all(b, a + b >= 0))";
    for number in 0..4 {
        let mut other = gateway.connect().await;
        let filter = format!("{costly} || payload.n == -{number}");
        other.subscribe("a", &["**"], json!({ "filter": filter })).await;
        noisy.spawn(async move {
            loop {
                let _: Value = other.next().await.unwrap();
            }
        });
    }
    let beside_filters = receipts(&mut client, &database, "beside four with costly filters").await;
    if let Some(ended) = noisy.join_next().now_or_never().flatten() {
        panic!("a client ended: {ended:?}");
    }
    noisy.shutdown().await;
    gateway.stop().await;
    for beside in [beside_subscribers, beside_filters] {
        let limit = alone.p99() * 3 + Duration::from_millis(50);
        assert!(beside.p99() <= limit, "p99 {:.1?}, at most {limit:.1?}; alone {alone}", beside.p99());
    }
    database.drop().await;
}
