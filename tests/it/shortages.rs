//! What this relay lacks is charged to no destination: its deliveries wait, and no attempt is counted.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use pgoutbox::{
    delivery::{Outcome, Reason},
    relay::telemetry::Signal,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::{
    sinks::kafka::Topic,
    support::{
        Books, Database, Recorder, RelayBox, Server,
        deliveries::{deliveries, registry},
        server::eventually,
    },
};

/// Receivers, each at an address of its own: more than the relay below may have connections.
const RECEIVERS: usize = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_with_few_descriptors_delivers_to_more_receivers_than_it_can_be_connected_with() {
    let database = Database::new().await;
    let books = Books::default();
    let mut servers = Vec::new();
    for number in 0..RECEIVERS {
        let server = Server::open(&books, Duration::ZERO).await;
        server.subscribe(&database, &format!("receiver-{number}"), &["**"]).await;
        servers.push(server);
    }
    database.execute(r#"update outbox.subscriptions set retry = '{"max_attempts": 1}'"#).await;
    let mut relay = tokio::process::Command::new("sh")
        .args(["-c", "ulimit -n 64 && exec \"$0\" run", env!("CARGO_BIN_EXE_pgoutbox")])
        .env_clear()
        .env("DATABASE_URL", database.relay_url())
        .env("PGOUTBOX__RELAY__NAME", "narrow")
        .env("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1/32")
        .env("PGOUTBOX__EGRESS__ALLOW_HTTP", "true")
        .env("PGOUTBOX__HTTP__LISTEN", "off")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for event in 1..=3 {
        books.publish(&database.pool, "shop.sold").await;
        books.wait_for(event * RECEIVERS, Duration::from_secs(25)).await;
    }
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    assert_eq!(database.count("select count(*) from outbox.attempts").await, 0, "no attempt has failed");
    let process = relay.id().expect("it still runs").to_string();
    assert!(Command::new("sh").args(["-c", "kill -s TERM \"$0\"", &process]).status().unwrap().success());
    let ended = tokio::time::timeout(Duration::from_secs(30), relay.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    database.drop().await;
}

#[tokio::test]
async fn a_delivery_for_which_the_relay_lacks_something_waits_and_no_attempt_is_counted() {
    let database = Database::new().await;
    database
        .execute(
            r#"select outbox.subscribe('short', array['**'], 'recorder', retry => '{"max_attempts": 1}'),
                      outbox.subscribe('other', array['**'], 'recorder')"#,
        )
        .await;
    let short =
        database.count("select id::bigint from outbox.subscriptions where name = 'short'").await.to_string();
    let lacking = Arc::new(AtomicUsize::new(3));
    let recorder = Recorder::answering(move |seen| {
        let lacks = |left: usize| left.checked_sub(1);
        let is_short = seen.subscription == "short" || seen.subscription == short;
        if is_short && lacking.fetch_update(Ordering::AcqRel, Ordering::Acquire, lacks).is_ok() {
            Outcome::Retry { reason: Reason::NoResources, after: None }
        } else {
            Outcome::Delivered
        }
    });
    let mut relay = RelayBox::start(&database, &recorder).await;
    database.execute("insert into outbox.events (topic, payload) values ('shop.sold', '1')").await;
    relay
        .wait(|signal| matches!(signal, Signal::ResourcesLacked { subscription } if subscription == "short"))
        .await;
    let seen = recorder.wait_for(5).await;
    assert!(seen.iter().all(|one| one.attempt == 1), "{seen:#?}");
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    assert_eq!(database.count("select count(*) from outbox.attempts").await, 0);
    relay.stop().await;
    database.drop().await;
}

/// The limit belongs to a process, so the client is in one of its own: the test below.
#[tokio::test]
async fn a_kafka_client_without_descriptors_waits() {
    let topic = Topic::mocked(1);
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "shortages::a_kafka_client_in_a_process_of_its_own", "--ignored", "--nocapture"])
        .env("PGOUTBOX_TEST_BROKERS", &topic.brokers)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended:?}");
    assert_eq!(topic.records().await.len(), 1);
}

#[tokio::test]
#[ignore = "the test above runs it"]
async fn a_kafka_client_in_a_process_of_its_own() {
    let brokers = std::env::var_os("PGOUTBOX_TEST_BROKERS").expect("brokers").into_string().unwrap();
    let sink = registry(&format!("[sinks.kafka]\nbrokers = '{brokers}'\ntimeout = '4s'"));
    let deliveries = deliveries(&sink, "kafka", json!({ "topic": "orders" }), 1);
    let is_free = |number: &u64| !std::path::Path::new(&format!("/proc/self/fd/{number}")).exists();
    let before = getrlimit(Resource::Nofile);
    let none_left = Rlimit { current: (3..).find(is_free), ..before };
    setrlimit(Resource::Nofile, none_left).unwrap();
    let report = deliveries.outlet.send(&deliveries).await.remove(0);
    setrlimit(Resource::Nofile, before).unwrap();
    assert_eq!((report.outcome.reason(), report.ambiguous), (Some(Reason::NoResources), false), "{report:?}");
    eventually("the record is stored", async || {
        deliveries.outlet.send(&deliveries).await[0].outcome == Outcome::Delivered
    })
    .await;
}
