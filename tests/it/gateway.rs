//! A process that serves live clients and nothing else.

use std::{
    net::{SocketAddr, TcpListener},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::ConnectOptions as _;

use crate::support::{
    ChildRelay, Database,
    live::{Client, Stream},
};

/// A process ends within this.
const END: Duration = Duration::from_secs(20);

/// An address that nobody uses now.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A gateway in its own process, which serves.
pub(crate) async fn start(database: &Database, address: SocketAddr, more: &[(&str, &str)]) -> ChildRelay {
    let mut command = ChildRelay::command(database, &["gateway"]);
    command
        .env("PGOUTBOX__RELAY__NAME", "one")
        .env("PGOUTBOX__HTTP__LISTEN", address.to_string())
        .envs(more.iter().copied());
    let gateway = ChildRelay::of(command);
    gateway.wait_for_log("gateway started").await;
    gateway
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = || client.get(format!("http://{address}{path}")).timeout(Duration::from_secs(20)).send();
    // When one gateway of the process follows another, a connection that has not asked yet is closed.
    let answer = match ask().await {
        Err(error) if error.is_request() => ask().await.unwrap(),
        answer => answer.unwrap(),
    };
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Whether the listener of the gateway holds the bell, so that publishers notify.
const ATTENDS: &str = "select exists (select from pg_locks as held join pg_stat_activity as one using (pid)
                                       where held.locktype = 'advisory' and held.granted and held.objid = 7411001
                                         and one.application_name like '%/one-gateway/%listener')";

/// Publishes events one by one. Nearly all come long before the poll of a second would find them.
async fn woken_for_each_event(database: &Database, client: &mut Client) {
    let mut soon = 0;
    for n in 0..12 {
        let began = Instant::now();
        database.execute(format!("select outbox.publish('a.b', '{n}')")).await;
        assert_eq!(client.payloads(1).await, [n]);
        soon += usize::from(began.elapsed() < Duration::from_millis(400));
    }
    assert!(soon >= 10, "{soon} of 12 came within 400 ms");
}

#[tokio::test]
async fn a_gateway_alone_is_woken_for_each_event_long_before_its_poll() {
    let database = Database::new().await;
    let address = free_address();
    let mut gateway = start(&database, address, &[]).await;
    let mut client = Client::connect(address).await;
    client.subscribe("a", &["a.*"], json!({})).await;
    database.eventually(ATTENDS).await;
    woken_for_each_event(&database, &mut client).await;
    let connections =
        "select count(*) from pg_stat_activity where application_name like '%/one-gateway/live%'";
    let connections = database.count(connections).await;
    assert!((2..=4).contains(&connections), "docs/live/operate.md counts 4: {connections}");

    gateway.signal("TERM");
    assert_eq!(gateway.ended(END).await, Some(0), "{:#?}", gateway.log());
    let left = database.count("select count(*) from outbox.gateways").await;
    assert_eq!(left, 0, "relays need not tell it any more");
    database.drop().await;
}

#[tokio::test]
async fn beside_a_relay_the_gateway_gives_the_doorbell_back_and_is_told_of_news() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    let mut client = Client::connect(address).await;
    client.subscribe("a", &["a.*"], json!({})).await;
    database.eventually(ATTENDS).await;

    let settings = [("PGOUTBOX__RELAY__POLL", "off")];
    let mut relay = ChildRelay::start(&database, "relay", &settings).await;
    database.eventually(&ATTENDS.replace("select exists", "select not exists")).await;
    // While it sleeps, the relay is rung for.
    database.eventually(&ATTENDS.replace("one-gateway/%listener", "relay/listener")).await;
    woken_for_each_event(&database, &mut client).await;

    relay.signal("TERM");
    assert_eq!(relay.ended(END).await, Some(0), "{:#?}", relay.log());
    database.eventually(ATTENDS).await;
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn a_gateway_that_stops_asks_its_clients_to_come_back_after_a_while_each() {
    let database = Database::new().await;
    let address = free_address();
    let mut gateway = start(&database, address, &[]).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Client::connect(address).await;
        client.subscribe("a", &["a.*"], json!({})).await;
        clients.push(client);
    }
    let url = format!("http://{address}/v1/stream?topics=a.*");
    let response = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    let mut stream = Stream::of(response);
    assert_eq!(stream.next().await.unwrap().event, "subscribed");

    gateway.signal("TERM");
    let mut hints = Vec::new();
    for client in &mut clients {
        let (code, reason) = client.closed().await.unwrap();
        assert_eq!(code, 1001);
        let reason: Value = serde_json::from_str(&reason).unwrap();
        hints.push(reason["retry_after_ms"].as_u64().unwrap());
    }
    while stream.next().await.is_some() {}
    hints.sort_unstable();
    hints.dedup();
    assert!(hints.len() > 4 && hints.iter().all(|hint| *hint < 5_000), "{hints:?}");
    assert_eq!(gateway.ended(END).await, Some(0), "{:#?}", gateway.log());
    database.drop().await;
}

#[tokio::test]
async fn a_second_signal_ends_a_gateway_that_waits_for_its_clients() {
    let database = Database::new().await;
    let address = free_address();
    let mut gateway = start(&database, address, &[]).await;
    // It answers no close.
    let mut client = Client::connect(address).await;
    client.subscribe("a", &["a.*"], json!({})).await;
    gateway.signal("TERM");
    gateway.wait_for_log("clients are asked to leave").await;
    gateway.signal("INT");
    assert_eq!(gateway.ended(END).await, Some(75), "{:#?}", gateway.log());
    database.drop().await;
}

#[tokio::test]
async fn a_gateway_that_cannot_serve_ends_with_the_code_that_says_why() {
    let (migrated, empty, old) = (Database::new().await, Database::empty().await, Database::new().await);
    old.execute("delete from outbox.migrations where version = (select max(version) from outbox.migrations)")
        .await;
    let name = format!("login_{}", uuid::Uuid::new_v4().simple());
    migrated.execute(format!("create role {name} login")).await;
    let stranger = migrated.options.clone().username(&name).to_url_lossy().to_string();
    for (url, code, said) in [
        ("postgres://postgres@127.0.0.1:1/nothing", 69, "refused"),
        (&stranger, 77, "no member of outbox_relay"),
        (&empty.relay_url(), 1, "pgoutbox migrate"),
        (&old.relay_url(), 1, "pgoutbox migrate"),
    ] {
        let mut command = ChildRelay::command(&migrated, &["gateway"]);
        command.env("DATABASE_URL", url).env("PGOUTBOX__HTTP__LISTEN", free_address().to_string());
        let mut gateway = ChildRelay::of(command);
        assert_eq!(gateway.ended(END).await, Some(code), "{:#?}", gateway.log());
        gateway.wait_for_log(said).await;
    }
    migrated.execute(format!("drop role {name}")).await;
    migrated.drop().await;
    empty.drop().await;
    old.drop().await;
}

#[tokio::test]
async fn a_gateway_is_ready_while_its_database_may_be_used() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    assert_eq!(get(address, "/livez").await.0, 200);
    assert_eq!(get(address, "/readyz").await, (200, "ok\n".to_owned()));
    let (_, state) = get(address, "/readyz?verbose").await;
    let state: Value = serde_json::from_str(&state).unwrap();
    assert_eq!(state["state"]["gateway"], "one-gateway", "{state}");
    assert_eq!(get(address, "/metrics").await.0, 200);

    database.execute("update outbox.identity set environment = 'staging'").await;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    let fenced = async {
        while get(address, "/readyz").await.0 != 503 {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), fenced).await.expect("it is another environment's");
    database.execute("update outbox.identity set environment = 'default'").await;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    let again = async {
        while get(address, "/readyz").await.0 != 200 {
            looks.tick().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("it may be used again");
    let mut client = Client::connect(address).await;
    client.subscribe("a", &["a.*"], json!({})).await;
    database.execute("select outbox.publish('a.b', '7')").await;
    assert_eq!(client.payloads(1).await, [7]);
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn a_token_that_is_replaced_in_its_file_counts_without_a_restart() {
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first").unwrap();
    let (address, token) = (free_address(), format!("file:{}", file.display()));
    let gateway = start(&database, address, &[("PGOUTBOX__HTTP__TOKEN", &token)]).await;
    let status = async |token: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("http://{address}/metrics")).bearer_auth(token);
        request.send().await.map_or(0, |answer| answer.status().as_u16())
    };
    assert_eq!((status("first").await, status("second").await), (200, 401));
    std::fs::write(&file, "second").unwrap();
    gateway.wait_for_logs("gateway started", 2).await;
    assert_eq!((status("first").await, status("second").await), (401, 200));
    database.drop().await;
}

#[test]
fn a_gateway_that_nobody_can_reach_is_a_mistake_of_the_configuration() {
    for (key, value) in [("HTTP__LISTEN", "off"), ("REALTIME__ENABLED", "false")] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .arg("gateway")
            .env_clear()
            .env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/nothing")
            .env(format!("PGOUTBOX__{key}"), value)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(78), "{output:?}");
    }
}
