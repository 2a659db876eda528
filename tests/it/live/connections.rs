//! Connections that end, and clients that say too much, too little, or read too slowly.

use std::time::Duration;

use pgoutbox::live::Settings;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Database, live::LiveBox};

#[tokio::test(flavor = "multi_thread")]
async fn when_a_gateway_stops_clients_are_told_when_to_come_back_and_miss_nothing() {
    let database = Database::new().await;
    let (live, other) = (LiveBox::start(&database).await, LiveBox::start(&database).await);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = live.connect().await;
        let token = client.subscribe("a", &["a.*"], json!({})).await;
        client.wait("caught_up").await;
        clients.push((client, token));
    }
    let mut stream = live.stream("topics=a.*", &[]).await;
    let token = stream.next().await.unwrap().id;
    live.stop().await;
    while stream.next().await.is_some() {}
    database.execute("select outbox.publish('a.b', '1')").await;
    let mut waits = std::collections::BTreeSet::new();
    for (mut client, token) in clients {
        let (code, reason) = client.closed().await.unwrap();
        assert_eq!(code, 1001);
        let hint: Value = serde_json::from_str(&reason).unwrap();
        waits.insert(hint["retry_after_ms"].as_u64().unwrap());
        let mut back = other.connect().await;
        back.subscribe("a", &["a.*"], json!({ "since": token })).await;
        assert_eq!(back.payloads(1).await, [json!(1)]);
    }
    assert!(waits.len() > 1 && waits.iter().all(|wait| *wait < 5_000), "spread over time: {waits:?}");
    let mut back = other.stream("topics=a.*", &[("last-event-id", &token)]).await;
    assert_eq!(back.event().await.data["event"]["payload"], 1);
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_source_that_finds_no_place_is_told_to_come_back_and_others_are_refused() {
    let database = Database::new().await;
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let first = live.stream("topics=a.*", &[]).await;
    let ask = async |accept: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/v1/stream?topics=a.*", live.address);
        let answer = client.get(url).header("accept", accept).send().await.unwrap();
        let (status, kind) = (answer.status().as_u16(), answer.headers()["content-type"].clone());
        (status, kind.to_str().unwrap().to_owned(), answer.text().await.unwrap())
    };
    let (status, kind, problem) = ask("*/*").await;
    assert_eq!((status, &*kind), (503, "application/problem+json"), "{problem}");
    let (status, kind, stream) = ask("text/event-stream").await;
    assert_eq!((status, &*kind), (200, "text/event-stream; charset=utf-8"));
    let wait = stream.strip_prefix("retry: ").unwrap().trim_end().parse::<u64>().unwrap();
    assert!((1_000..=6_000).contains(&wait), "{stream}");
    drop(first);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_gives_no_sign_of_life_is_dropped_and_one_that_does_is_kept() {
    let database = Database::new().await;
    let settings = Settings { heartbeat: Duration::from_secs(1), ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut alive = live.connect().await;
    let first = alive.subscribe("a", &["a.*"], json!({})).await;
    // A socket that answers no ping.
    let mut dead = live.raw_socket().await;
    let room = live.gateway.room().clone();
    assert_eq!(room.connections(), 2);
    let mut token = Value::Null;
    for _ in 0..4 {
        // Each heartbeat brings a young token.
        token = alive.wait("caught_up").await["token"].clone();
    }
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), dead.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(room.connections(), 1);
    database.execute("select outbox.publish('x.y', '1'), outbox.publish('a.b', '2')").await;
    assert_eq!(alive.payloads(1).await, [json!(2)]);
    assert_ne!(token, json!(first));
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_text_is_refused_and_what_is_too_large_ends_the_connection() {
    let database = Database::new().await;
    let settings = Settings { max_message: 1_024, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut client = live.connect().await;
    client.send_binary(b"{\"type\":\"ping\"}").await;
    assert_eq!(client.next().await.unwrap()["code"], "bad_message");
    client.send(json!({ "type": "ping", "more": "x".repeat(2_000) })).await;
    assert_eq!(client.closed().await.unwrap().0, 1009);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_closed_at_its_limit_and_holds_up_nobody() {
    let database = Database::new().await;
    let settings = Settings { max_lag: Duration::from_secs(2), buffer: 65_536, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let (mut slow, mut good) = (live.connect().await, live.connect().await);
    let token = slow.subscribe("a", &["a.*"], json!({})).await;
    slow.wait("caught_up").await;
    good.subscribe("a", &["a.*"], json!({})).await;
    // More than the buffers of the sockets take.
    for part in 0..8 {
        database
            .execute(format!(
                "select outbox.publish('a.b', to_jsonb(repeat('x', 100000) || n)) \
                   from generate_series({part} * 10, {part} * 10 + 9) as n"
            ))
            .await;
        assert_eq!(good.payloads(10).await.len(), 10);
    }
    let room = live.gateway.room().clone();
    let gone = async {
        while room.connections() > 1 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
    // What it had not read it gets when it comes back.
    let mut back = live.connect().await;
    back.subscribe("a", &["a.*"], json!({ "since": token })).await;
    assert_eq!(back.payloads(80).await.len(), 80);
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_slowly_is_told_that_it_lags_and_gets_everything() {
    let database = Database::new().await;
    let settings = Settings { buffer: 65_536, ..Settings::default() };
    let live = LiveBox::start_with(&database, settings, Default::default()).await;
    let mut slow = live.connect().await;
    slow.subscribe("a", &["a.*"], json!({})).await;
    slow.wait("caught_up").await;
    const EVENTS: usize = 300;
    for n in 0..EVENTS {
        let sql = format!("select outbox.publish('a.b', jsonb_build_array({n}, repeat('x', 50000)))");
        database.execute(sql).await;
    }
    let (mut numbers, mut lagged) = (Vec::new(), false);
    while numbers.len() < EVENTS {
        let message = slow.next().await.unwrap();
        match message["type"].as_str().unwrap() {
            "event" => numbers.push(message["event"]["payload"][0].as_u64().unwrap()),
            "lagging" => lagged = true,
            _ => {}
        }
    }
    assert!(lagged, "it was not told");
    assert_eq!(numbers, (0..EVENTS as u64).collect::<Vec<_>>());
    slow.wait("caught_up").await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_wait_while_the_database_is_away_and_miss_nothing() {
    let database = Database::new().await;
    let live = LiveBox::start(&database).await;
    let mut client = live.connect().await;
    client.subscribe("a", &["a.*"], json!({})).await;
    client.wait("caught_up").await;
    for round in 1..=3 {
        database
            .execute(format!(
                "select pg_terminate_backend(pid) from pg_stat_activity \
                  where datname = current_database() and usename = '{}'",
                crate::support::database::RELAY_LOGIN
            ))
            .await;
        database.execute(format!("select outbox.publish('a.b', '{round}')")).await;
        assert_eq!(client.payloads(1).await, [json!(round)]);
    }
    live.stop().await;
    database.drop().await;
}

impl LiveBox {
    /// A socket that was upgraded and is not served by a library.
    async fn raw_socket(&self) -> tokio::net::TcpStream {
        let mut socket = tokio::net::TcpStream::connect(self.address).await.unwrap();
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
            self.address
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = vec![0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, b"HTTP/1.1 101");
        socket
    }
}
