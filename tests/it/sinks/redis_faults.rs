//! The redis sink with a server that is full, stopped, frozen, killed, a replica or not started.

use std::time::{Duration, Instant};

use pgoutbox::delivery::{Outcome, Reason};

use super::redis::{Redis, reason};
use crate::{
    sink_contract::Destination,
    support::{
        Database, Recorder, RelayBox,
        deliveries::{connections, deliveries},
        relay::settings,
        server::eventually,
    },
};

#[tokio::test]
async fn full_memory_is_a_retry_until_there_is_space() {
    let redis = Redis::start().await;
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 1);
    let outlet = &deliveries.outlet;
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let full = outlet.send(&deliveries).await.remove(0);
    assert_eq!(reason(&full), (Some(Reason::DestinationFull), false), "{full:?}");
    assert!(outlet.check().await.unwrap_err().as_str().contains("OOM"));
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(outlet.send(&deliveries).await[0].outcome, Outcome::Delivered);
}

#[tokio::test]
async fn a_server_whose_clients_are_as_many_as_it_takes_is_waited_for() {
    let redis = Redis::start().await;
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 1);
    let outlet = &deliveries.outlet;
    // One of another program stays connected.
    let other = std::net::TcpStream::connect(("127.0.0.1", redis.server.port())).unwrap();
    eventually("it is connected", async || redis.cli(&["CLIENT", "LIST"]).lines().count() >= 2).await;
    redis.cli(&["CONFIG", "SET", "maxclients", "1"]);
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(reason(&report), (Some(Reason::NoResources), false), "{report:?}");
    drop(other);
    eventually("there is room again", async || {
        outlet.send(&deliveries).await[0].outcome == Outcome::Delivered
    })
    .await;
}

#[tokio::test]
async fn a_replica_is_left_for_a_new_connection() {
    let redis = Redis::start().await;
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 1);
    let outlet = &deliveries.outlet;
    // The sink's connection is the one that sent XADD last.
    let ours = || {
        let list = redis.cli(&["CLIENT", "LIST"]);
        list.lines()
            .find(|line| line.contains("cmd=xadd"))
            .map(|line| line.split(' ').next().unwrap().to_owned())
    };
    outlet.send(&deliveries).await;
    let before = ours();
    redis.cli(&["REPLICAOF", "127.0.0.1", "1"]);
    let report = outlet.send(&deliveries).await.remove(0);
    assert_eq!(report.outcome.reason(), Some(Reason::Refused));
    assert!(report.answer.unwrap().starts_with("READONLY"));
    eventually("the connection is closed", async || ours() != before).await;
    outlet.send(&deliveries).await;
    assert!(ours().is_some_and(|ours| Some(ours) != before));
}

#[tokio::test]
async fn the_next_attempt_reaches_a_server_that_was_down_without_a_restart_of_the_relay() {
    let mut redis = Redis::start().await;
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 2);
    let outlet = &deliveries.outlet;
    assert_eq!(outlet.send(&deliveries[..1]).await[0].outcome, Outcome::Delivered);
    redis.server.stop();
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome.code(), "retry");
    redis.server.start_again().unwrap();
    eventually("its file is loaded", async || redis.cli(&["PING"]) == "PONG").await;
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome, Outcome::Delivered);
    assert_eq!(redis.received().await.len(), 2, "kept by the append-only file");
}

#[tokio::test]
async fn a_restart_during_an_idle_time_costs_no_attempt() {
    let mut redis = Redis::start().await;
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 2);
    let outlet = &deliveries.outlet;
    outlet.send(&deliveries[..1]).await;
    let sent = Instant::now();
    redis.server.kill();
    redis.server.start_again().unwrap();
    eventually("the connection counts as quiet", async || sent.elapsed() > Duration::from_millis(1_100))
        .await;
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome, Outcome::Delivered);
}

#[tokio::test]
async fn a_frozen_server_is_an_ambiguous_timeout() {
    let mut redis = Redis::start().await;
    redis.more = "timeout = '300ms'".to_owned();
    let deliveries = deliveries(&redis.registry(), "redis", redis.config(), 3);
    let outlet = &deliveries.outlet;
    outlet.send(&deliveries[..1]).await;
    redis.server.freeze();
    let report =
        tokio::time::timeout(outlet.deadline(), outlet.send(&deliveries[1..])).await.unwrap().remove(1);
    assert_eq!(reason(&report), (Some(Reason::Timeout), true), "{report:?}");
    redis.server.thaw();
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome, Outcome::Delivered);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_at_the_start_delays_no_other_and_gets_everything_when_it_starts() {
    let (database, recorder, mut redis) = (Database::new().await, Recorder::new(), Redis::start().await);
    redis.server.kill();
    database
        .execute(
            "select outbox.subscribe('far', array['**'], 'redis', \
             config => '{\"stream\": \"events\"}', \
             retry => '{\"initial\": \"100ms\", \"max\": \"500ms\", \"max_attempts\": 100}')",
        )
        .await;
    database.execute("select outbox.subscribe('near', array['**'], 'recorder')").await;
    let relay = RelayBox::start_with(&database, |builder| {
        builder
            .settings(settings("relay"))
            .sink(recorder.clone())
            .connections(&connections(&redis.section()))
            .unwrap()
    })
    .await;
    database
        .execute(
            "select outbox.publish('shop.orders.create', jsonb_build_object('n', n)) \
             from generate_series(1, 300) as n",
        )
        .await;
    recorder.wait_for(300).await;
    eventually("only deliveries to redis are left", async || {
        database.count("select count(*) from outbox.owed").await == 300
    })
    .await;
    redis.server.start_again().unwrap();
    eventually("everything arrives", async || {
        redis.cli(&["XLEN", "events"]).parse::<usize>().unwrap_or(0) >= 300
    })
    .await;
    eventually("everything is settled", async || {
        database.count("select count(*) from outbox.owed").await == 0
    })
    .await;
    let mut ids: Vec<_> = redis.received().await.into_iter().map(|(id, _)| id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 300);
    relay.stop().await;
}
