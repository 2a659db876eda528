//! Subscriptions that hang, flood or answer garbage.

use std::time::Duration;

use super::{Live, publish, relay, subscribe};
use crate::support::{
    Database,
    hostile::{Hostile, Mode},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn four_of_ten_subscriptions_that_hang_flood_or_answer_garbage_do_not_delay_the_others() {
    let database = Database::new().await;
    let mut live = Live::start(&database, "live.order").await;
    let more: Vec<_> =
        (1..6).map(|n| (format!("good-{n}"), "live.*", format!("{}{n}", live.good.url))).collect();
    subscribe(&database, &more).await;
    live.copies = 6;
    let running = relay(&database).await;
    let alone = live.measure(&database, "six good ones").await;
    let mut bad = Vec::new();
    for mode in [Mode::Hang, Mode::EndlessBody(200), Mode::EndlessBody(500), Mode::Garbage] {
        bad.push(Hostile::start(mode).await);
    }
    // They want the live events, and many more.
    let made: Vec<_> =
        bad.iter().enumerate().map(|(n, bad)| (format!("bad-{n}"), "**", bad.url("/"))).collect();
    subscribe(&database, &made).await;
    publish(&database, "bulk.order", 1_000, None).await;
    let beside = live.measure(&database, "beside four bad ones").await;
    let again = live.measure(&database, "and after their first answers").await;
    assert!(bad.iter().all(|bad| !bad.requests().is_empty()), "each bad one is sent to");
    running.abort().await;
    beside.are_within(Duration::from_secs(3));
    again.are_like(&alone);
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn three_hundred_subscriptions_that_hang_do_not_delay_one_made_after_them() {
    let database = Database::new().await;
    let running = relay(&database).await;
    let mut first = Live::start(&database, "live.first").await;
    let alone = first.measure(&database, "one good subscription").await;
    let hanging = Hostile::start(Mode::Hang).await;
    let made: Vec<_> =
        (0..300).map(|n| (format!("hangs-{n}"), "**", hanging.url(&format!("/{n}")))).collect();
    subscribe(&database, &made).await;
    let mut live = Live::start(&database, "live.last").await;
    publish(&database, "bulk.order", 100, None).await;
    // Here each of them is sent to for the first time.
    live.one(&database, "just behind events for all of them", Duration::from_secs(3)).await;
    let beside = live.measure(&database, "after three hundred that hang").await;
    eprintln!("{} requests hang", hanging.requests().len());
    assert!(hanging.connections() >= 300, "each of them is sent to: {}", hanging.connections());
    running.abort().await;
    beside.are_like(&alone);
    database.drop().await;
}
