//! Receivers that ask for less.

use std::time::{Duration, Instant};

use super::{Live, publish, relay, subscribe};
use crate::support::{
    Database,
    hostile::{Hostile, Mode, Small},
};

/// Hosts that refuse at once.
const HOSTS: usize = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn five_hundred_hosts_that_answer_429_at_once_delay_nobody_else() {
    let database = Database::new().await;
    let mut live = Live::start(&database, "live.order").await;
    let running = relay(&database).await;
    let alone = live.measure_some(&database, "alone", 100).await;
    let busy = Mode::Status(429, vec![("retry-after", "1".to_owned())], vec![]);
    let mut hosts = Vec::new();
    for n in 0..HOSTS {
        let address = format!("127.0.{}.{}:0", 1 + n / 250, 1 + n % 250);
        hosts.push(Hostile::start_on(&address, busy.clone()).await);
    }
    let made: Vec<_> =
        hosts.iter().enumerate().map(|(n, host)| (format!("busy-{n}"), "bulk.*", host.url("/"))).collect();
    subscribe(&database, &made).await;
    live.one(&database, "with 500 further subscriptions", Duration::from_secs(10)).await;
    publish(&database, "bulk.order", 3, None).await;
    let beside = live.measure(&database, "while 500 hosts refuse for the first time").await;
    let again = live.measure(&database, "beside 500 hosts that refuse").await;
    let requests: usize = hosts.iter().map(|host| host.requests().len()).sum();
    eprintln!("{requests} requests to busy hosts");
    running.abort().await;
    assert!(requests >= HOSTS, "{requests} requests to busy hosts");
    beside.are_within(Duration::from_secs(3));
    again.are_like(&alone);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn the_pace_of_a_small_receiver_is_found_with_few_refusals() {
    const EVENTS: usize = 2_000;
    let database = Database::new().await;
    let small = Small::new(20, Duration::from_millis(20));
    let receiver = Hostile::start(Mode::Small(small.clone())).await;
    subscribe(&database, &[("small".to_owned(), "**", receiver.url("/"))]).await;
    let running = relay(&database).await;
    let began = Instant::now();
    publish(&database, "bulk.order", EVENTS, None).await;
    receiver
        .wait_until(Duration::from_secs(20), |requests| requests.saturating_sub(small.refused()) >= EVENTS)
        .await;
    database.eventually("select not exists (select from outbox.owed)").await;
    let (requests, refused) = (receiver.requests().len(), small.refused());
    eprintln!("{EVENTS} delivered in {:.1?}; {refused} of {requests} requests refused", began.elapsed());
    running.abort().await;
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    assert_eq!(requests - refused, EVENTS, "each once");
    assert!(refused * 10 <= EVENTS, "{refused} of {requests} requests were refused");
    database.drop().await;
}
