//! Gateways that are fed by NATS: one reads the log for all, and clients notice nothing of it.

use std::time::Duration;

use async_nats::jetstream::stream;
use futures_util::StreamExt as _;
use pgoutbox::{
    live::{Backplane, Settings, backplane},
    sinks::nats::Config,
};
use serde_json::{Value, json};

use super::storm::storm;
use crate::{
    sink_contract::Destination as _,
    sinks::nats::Nats,
    support::{
        Database,
        live::{Client, LiveBox},
        server::eventually,
    },
};

pub(super) fn settings(nats: &Nats) -> Settings {
    let config = Config::new(vec![format!("nats://127.0.0.1:{}", nats.server.port())]);
    let backplane = Backplane::Nats(Box::new(backplane::Nats::new(config)));
    // So slow that a missed notification is noticed.
    Settings { poll: Duration::from_secs(20), backplane, ..Settings::default() }
}

pub(super) async fn start(database: &Database, nats: &Nats) -> LiveBox {
    LiveBox::start_with(database, settings(nats), Default::default()).await
}

pub(super) async fn publish(database: &Database, from: usize, to: usize) {
    database
        .execute(format!("select outbox.publish('a.b', to_jsonb(n)) from generate_series({from}, {to}) as n"))
        .await;
}

pub(super) async fn follow(gateway: &LiveBox, more: Value) -> (Client, String) {
    let mut client = gateway.connect().await;
    let token = client.subscribe("a", &["a.*"], more).await;
    (client, token)
}

pub(super) async fn assert_next(client: &mut Client, from: usize, to: usize) {
    // Signs of life come also when events do not.
    let payloads = tokio::time::timeout(Duration::from_secs(60), client.payloads(to + 1 - from)).await;
    let payloads = payloads.unwrap_or_else(|_| panic!("the events {from} to {to} did not come"));
    let numbers: Vec<_> = payloads.iter().map(|payload| payload.as_u64().unwrap()).collect();
    assert_eq!(numbers, (from as u64..=to as u64).collect::<Vec<_>>());
}

/// Nothing reaches the gateways any more, until they notice. Returns how many there are.
async fn delete_consumers(stream: &stream::Stream) -> usize {
    let names: Vec<_> = stream.consumer_names().collect().await;
    for name in &names {
        stream.delete_consumer(name.as_ref().unwrap()).await.unwrap();
    }
    names.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn gateways_fed_by_nats_lose_nothing_and_repeat_nothing() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let small = Settings { buffer: 65_536, ..settings(&nats) };
    let gateways =
        [start(&database, &nats).await, LiveBox::start_with(&database, small, Default::default()).await];
    storm(&database, gateways).await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_of_nats_loses_nothing_and_repeats_nothing() {
    let (database, mut nats) = (Database::new().await, Nats::start().await);
    let (one, other) = (start(&database, &nats).await, start(&database, &nats).await);
    let (mut a, _) = follow(&one, json!({})).await;
    let (mut b, _) = follow(&other, json!({})).await;
    publish(&database, 1, 20).await;
    for client in [&mut a, &mut b] {
        assert_next(client, 1, 20).await;
    }
    nats.server.stop();
    publish(&database, 21, 700).await;
    let mut waits = one.connect().await;
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"] });
    assert_eq!(waits.refusal(refused).await, "unavailable", "nobody can say what is new");
    nats.server.start_again().unwrap();
    for client in [&mut a, &mut b] {
        assert_next(client, 21, 700).await;
    }
    waits.subscribe("a", &["a.*"], json!({})).await;
    publish(&database, 701, 702).await;
    for client in [&mut a, &mut b, &mut waits] {
        assert_next(client, 701, 702).await;
    }
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_is_good_at_gateways_with_and_without_nats() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let (fed, reads) = (start(&database, &nats).await, LiveBox::start(&database).await);
    let (mut a, _) = follow(&fed, json!({})).await;
    let (mut b, _) = follow(&reads, json!({})).await;
    publish(&database, 1, 30).await;
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for _ in 1..=30 {
        of_a.push(a.wait("event").await["token"].clone());
        of_b.push(b.wait("event").await["token"].clone());
    }
    let young = follow(&reads, json!({})).await.1;
    publish(&database, 31, 40).await;
    for (gateway, tokens) in [(&reads, &of_a), (&fed, &of_b), (&fed, &of_a)] {
        for seen in [1, 7, 30] {
            let (mut back, _) = follow(gateway, json!({ "since": tokens[seen - 1] })).await;
            assert_next(&mut back, seen + 1, 40).await;
            back.wait("caught_up").await;
        }
    }
    let (mut back, _) = follow(&fed, json!({ "since": young })).await;
    assert_next(&mut back, 31, 40).await;
    database.execute("select outbox.publish('a.b', '41', key => 'k')").await;
    let (mut snapshot, _) = follow(&fed, json!({ "snapshot": true })).await;
    assert_next(&mut snapshot, 41, 41).await;
    fed.stop().await;
    reads.stop().await;
    database.drop().await;
}

/// How often the log was read while so many gateways sent each event to a client.
async fn reads(database: &Database, nats: &Nats, gateways: usize) -> i64 {
    let scans = async || {
        let of_log = "select coalesce(sum(idx_scan), 0)::bigint from pg_stat_user_tables \
                      where schemaname = 'outbox' and relname like 'events%'";
        sqlx::query_scalar::<_, i64>(of_log).fetch_one(&database.pool).await.unwrap()
    };
    let before = scans().await;
    let mut running = Vec::new();
    for _ in 0..gateways {
        let gateway = start(database, nats).await;
        let (client, _) = follow(&gateway, json!({})).await;
        running.push((gateway, client));
    }
    for n in 1..=100 {
        publish(database, n, n).await;
        for (_, client) in &mut running {
            assert_next(client, n, n).await;
        }
    }
    for (gateway, _) in running {
        gateway.stop().await;
    }
    // A session adds to the statistics when it ends.
    database
        .eventually(
            "select not exists (select from pg_stat_activity where datname = current_database() \
             and application_name like '%gateway-%')",
        )
        .await;
    scans().await - before
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_log_is_read_as_often_for_many_gateways_as_for_one() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let one = reads(&database, &nats, 1).await;
    let many = reads(&database, &nats, 6).await;
    assert!(one >= 100, "{one} reads are counted");
    assert!(many < one * 2, "{many} reads for six gateways, {one} for one");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn messages_that_the_stream_has_dropped_leave_no_gap() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let config = stream::Config {
        name: "pgoutbox_live".to_owned(),
        subjects: vec!["pgoutbox.live".to_owned()],
        max_messages: 1,
        ..stream::Config::default()
    };
    nats.stream(config).await;
    let (one, other) = (start(&database, &nats).await, start(&database, &nats).await);
    let (mut a, _) = follow(&one, json!({})).await;
    let (mut b, _) = follow(&other, json!({})).await;
    publish(&database, 1, 10).await;
    for client in [&mut a, &mut b] {
        assert_next(client, 1, 10).await;
    }
    let jetstream = nats.jetstream().await;
    let stream = jetstream.get_stream("pgoutbox_live").await.unwrap();
    assert_eq!(delete_consumers(&stream).await, 2);
    let last = async || stream.get_info().await.unwrap().state.last_sequence;
    for n in 11..=15 {
        let before = last().await;
        publish(&database, n, n).await;
        eventually("the event is in the stream", async || last().await > before).await;
    }
    for client in [&mut a, &mut b] {
        assert_next(client, 11, 15).await;
    }
    publish(&database, 16, 2_000).await;
    for client in [&mut a, &mut b] {
        assert_next(client, 16, 2_000).await;
    }
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_was_committed_before_a_request_is_not_new_although_the_stream_is_late() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let gateway = start(&database, &nats).await;
    let (mut client, _) = follow(&gateway, json!({})).await;
    let stream = nats.jetstream().await.get_stream("pgoutbox_live").await.unwrap();
    assert_eq!(delete_consumers(&stream).await, 1);
    publish(&database, 1, 3).await;
    let (mut late, _) = follow(&gateway, json!({})).await;
    publish(&database, 4, 5).await;
    assert_next(&mut late, 4, 5).await;
    assert_next(&mut client, 1, 5).await;
    gateway.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_that_is_deleted_or_purged_leaves_no_gap() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let gateway = start(&database, &nats).await;
    let (mut client, _) = follow(&gateway, json!({})).await;
    publish(&database, 1, 10).await;
    assert_next(&mut client, 1, 10).await;
    let jetstream = nats.jetstream().await;
    jetstream.get_stream("pgoutbox_live").await.unwrap().purge().await.unwrap();
    publish(&database, 11, 20).await;
    assert_next(&mut client, 11, 20).await;
    jetstream.delete_stream("pgoutbox_live").await.unwrap();
    publish(&database, 21, 30).await;
    assert_next(&mut client, 21, 30).await;
    publish(&database, 31, 40).await;
    assert_next(&mut client, 31, 40).await;
    gateway.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn events_larger_than_a_message_of_nats_arrive_and_each_has_its_place() {
    let database = Database::new().await;
    let nats = Nats::with("max_payload: 65536\n", None);
    let gateway = start(&database, &nats).await;
    let (mut client, _) = follow(&gateway, json!({})).await;
    database
        .execute(
            "select outbox.publish('a.b', to_jsonb(n || repeat('x', case when n % 2 = 0 then 100000 else 9000 \
             end))) from generate_series(1, 60) as n",
        )
        .await;
    let mut tokens = Vec::new();
    for n in 1..=60 {
        let event = client.wait("event").await;
        tokens.push((event["token"].clone(), event["event"]["id"].clone()));
        let payload = event["event"]["payload"].as_str().unwrap();
        let length = if n % 2 == 0 { 100_000 } else { 9_000 };
        assert_eq!(
            (payload.trim_end_matches('x'), payload.trim_start_matches(|c| c != 'x').len()),
            (&*n.to_string(), length)
        );
    }
    // The places between the messages are places of the log.
    let reads = LiveBox::start(&database).await;
    for gateway in [&gateway, &reads] {
        for seen in [1, 5, 6, 7, 8, 13, 21, 40, 59] {
            let (mut back, _) = follow(gateway, json!({ "since": tokens[seen - 1].0 })).await;
            for (_, id) in &tokens[seen..] {
                assert_eq!(back.wait("event").await["event"]["id"], *id);
            }
        }
    }
    reads.stop().await;
    gateway.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_stream_of_another_version_or_of_another_outbox_is_refused() {
    let (database, other, nats) = (Database::new().await, Database::new().await, Nats::start().await);
    let feeder = start(&other, &nats).await;
    drop(follow(&feeder, json!({})).await);
    feeder.stop().await;
    // Nobody feeds from the other one any more: this one begins anew.
    let gateway = start(&database, &nats).await;
    let (mut client, _) = follow(&gateway, json!({})).await;
    publish(&database, 1, 3).await;
    assert_next(&mut client, 1, 3).await;
    gateway.stop().await;
    nats.jetstream().await.publish("pgoutbox.live", vec![9, 1, 2, 3].into()).await.unwrap().await.unwrap();
    let gateway = start(&database, &nats).await;
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"] });
    assert_eq!(gateway.connect().await.refusal(refused).await, "unavailable");
    gateway.stop().await;
    database.drop().await;
    other.drop().await;
}

#[tokio::test]
async fn check_says_when_the_stream_cannot_be_used() {
    let (database, mut nats) = (Database::new().await, Nats::start().await);
    let servers = format!("nats://127.0.0.1:{}", nats.server.port());
    let check = async |stream: &str| {
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .arg("check")
            .env_clear()
            .env("DATABASE_URL", database.relay_url())
            .env("PGOUTBOX__REALTIME__BACKPLANE", "nats")
            .env("PGOUTBOX__REALTIME__NATS__STREAM", stream)
            .env("PGOUTBOX__SINKS__NATS__SERVERS", &servers)
            .current_dir(std::env::temp_dir())
            .output();
        let output = output.await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check("pgoutbox_live").await, (Some(0), String::new()), "it is not made yet");
    let (code, found) = check("EVENTS").await;
    assert_eq!(code, Some(1));
    assert!(found.starts_with("realtime.backplane: the stream EVENTS has the subjects"), "{found}");
    nats.server.stop();
    let (code, found) = check("pgoutbox_live").await;
    assert_eq!(code, Some(1));
    assert!(found.starts_with("realtime.backplane: "), "{found}");
}
