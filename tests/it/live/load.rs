//! Many clients, slow ones, and more than there are places.

use std::{net::IpAddr, time::Duration};

use futures_util::future::join_all;
use pgoutbox::live::Settings;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use crate::support::{
    Database,
    live::{Client, LiveBox, until},
};

/// Clients that connect at once: connections of which no request has come yet have few places.
const AT_ONCE: usize = 100;

async fn publish(database: &Database, from: usize, to: usize, padding: usize) {
    database
        .execute(format!(
            "select outbox.publish('a.b', jsonb_build_object('n', n, 'padding', repeat('x', {padding}))) \
               from generate_series({from}, {to}) as n"
        ))
        .await;
}

fn number(message: &Value) -> u64 {
    message["event"]["payload"]["n"].as_u64().unwrap()
}

/// Raises the limit of descriptors of this process: both ends of each connection are in it.
fn raise_descriptors() {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum }).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_clients_are_each_sent_every_event_once_and_the_log_is_read_once_for_all() {
    raise_descriptors();
    let database = Database::new().await;
    let settings = Settings { max_per_address: 2_000, poll: Duration::from_secs(20), ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut clients = Vec::new();
    while clients.len() < 2_000 {
        let some = join_all((0..AT_ONCE).map(|_| async {
            let mut client = live.connect().await;
            client.subscribe("a", &["a.*"], json!({})).await;
            client.wait("caught_up").await;
            client
        }));
        clients.extend(some.await);
    }
    assert_eq!(live.gateway.room().connections(), 2_000);
    let before = live.metric("pgoutbox_live_log_reads_total{by=\"feed\"}");
    for n in 0..5 {
        publish(&database, 4 * n + 1, 4 * n + 4, 200).await;
    }
    let all = clients.iter_mut().map(|client| async {
        for n in 1..=20 {
            assert_eq!(number(&client.wait("event").await), n);
        }
    });
    join_all(all).await;
    let reads = live.metric("pgoutbox_live_log_reads_total{by=\"feed\"}") - before;
    assert!(reads < 500.0, "{reads} reads of the log for 2,000 clients");
    assert_eq!(live.metric("pgoutbox_live_log_reads_total{by=\"history\"}"), 0.0);
    assert_eq!(live.metric("pgoutbox_live_events_sent_total"), 40_000.0);
    drop(clients);
    until("all have left", || live.gateway.room().connections() == 0).await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_read_slowly_get_everything_in_the_end_and_are_told_that_they_lag() {
    let database = Database::new().await;
    let settings = Settings { buffer: 65_536, poll: Duration::from_secs(20), ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut slow = join_all((0..20).map(|_| async {
        let mut client = Client::narrow(live.address).await;
        client.subscribe("a", &["a.*"], json!({})).await;
        client.wait("caught_up").await;
        client
    }))
    .await;
    let mut quick = live.connect().await;
    quick.subscribe("a", &["a.*"], json!({})).await;
    quick.wait("caught_up").await;
    for n in 0..20 {
        publish(&database, 50 * n + 1, 50 * n + 50, 10_000).await;
        // The others read nothing meanwhile, and cost this one nothing.
        for n in 50 * n + 1..=50 * n + 50 {
            assert_eq!(number(&quick.wait("event").await), n as u64);
        }
    }
    let sent = live.metric("pgoutbox_live_events_sent_total");
    assert!(sent < 15_000.0, "{sent} events were taken from memory for clients that read nothing");
    let told = slow.iter_mut().map(|client| async {
        let (mut next, mut lagging) = (1, 0);
        while next <= 1_000 {
            let message = client.next().await.unwrap();
            match message["type"].as_str().unwrap() {
                "event" => {
                    assert_eq!(number(&message), next);
                    next += 1;
                }
                "lagging" => lagging += 1,
                other => assert_eq!(other, "caught_up"),
            }
        }
        lagging
    });
    let told: Vec<u32> = join_all(told).await;
    assert!(told.iter().all(|told| *told > 0), "{told:?}");
    assert_eq!(live.metric("pgoutbox_live_lagging_total"), f64::from(told.iter().sum::<u32>()));
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_is_closed_at_its_limit_and_has_no_gap_before() {
    let database = Database::new().await;
    let settings = Settings {
        buffer: 65_536,
        max_lag: Duration::from_secs(1),
        poll: Duration::from_secs(20),
        ..Settings::default()
    };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut slow = Client::narrow(live.address).await;
    slow.subscribe("a", &["a.*"], json!({})).await;
    slow.wait("caught_up").await;
    for n in 0..20 {
        publish(&database, 50 * n + 1, 50 * n + 50, 10_000).await;
    }
    until("it is closed", || live.metric("pgoutbox_live_closed_total{reason=\"lagged\"}") == 1.0).await;
    let mut seen = 0;
    let code = loop {
        match slow.next().await {
            Ok(message) if message["type"] == "event" => {
                seen += 1;
                assert_eq!(number(&message), seen);
            }
            Ok(message) => assert!(message["type"] == "lagging" || message["type"] == "caught_up"),
            Err(code) => break code,
        }
    };
    assert!(seen < 1_000 && (code.is_none() || code == Some(1013)), "{seen} events, closed with {code:?}");
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_clients_than_places_are_refused_and_a_place_that_is_left_is_free() {
    let database = Database::new().await;
    let settings = Settings { max_connections: 3, max_per_address: 2, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let mut clients = vec![live.connect().await, live.connect().await];
    for (query, word) in [("topics=a.*", "address"), ("topics=b.*", "address")] {
        let refused = live.stream(query, &[]).await.response;
        assert_eq!(refused.status(), 503);
        let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=5).contains(&seconds));
        assert!(refused.text().await.unwrap().contains(word));
    }
    assert_eq!(Client::connect_from(one, live.address).await.unwrap_err(), 503);
    let third = Client::connect_from(other, live.address).await.unwrap();
    let third_place = IpAddr::from([127, 0, 0, 3]);
    assert_eq!(Client::connect_from(third_place, live.address).await.unwrap_err(), 503);
    assert_eq!(live.metric("pgoutbox_live_refused_total"), 4.0);
    drop((clients.pop(), third));
    until("two have left", || live.gateway.room().connections() == 1).await;
    Client::connect_from(third_place, live.address).await.unwrap();
    Client::connect_from(one, live.address).await.unwrap();
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_come_and_go_leave_nothing_behind() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    for round in 0..10 {
        let clients = join_all((0..50).map(|number| async move {
            let mut client = Client::connect(live.address).await;
            let filter = format!("payload.n > {}", 50 * round + number);
            client.subscribe("a", &["a.*"], json!({ "filter": filter })).await;
            client
        }))
        .await;
        // Half of them say that they leave.
        for (number, client) in clients.into_iter().enumerate() {
            if number % 2 == 0 {
                client.close().await;
            }
        }
        let streams = join_all((0..20).map(|_| live.stream("topics=a.*", &[]))).await;
        assert!(streams.iter().all(|stream| stream.response.status() == 200));
    }
    until("all have left", || live.gateway.room().connections() == 0).await;
    for transport in ["websocket", "stream"] {
        let name = format!("pgoutbox_live_connections{{transport=\"{transport}\"}}");
        until("they are counted as gone", || live.metric(&name) == 0.0).await;
    }
    // And the gateway serves as before.
    let mut client = live.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    publish(&database, 1, 1, 1).await;
    assert_eq!(number(&client.wait("event").await), 1);
    live.stop().await;
    database.drop().await;
}
