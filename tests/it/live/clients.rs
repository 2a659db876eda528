//! Real clients: browsers, Python and Node follow events through a stop and a start of their gateway.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use pgoutbox::{
    http::{self, Jwt},
    live::Settings,
};
use serde_json::{Value, json};

use super::browser::{Browser, Receiver, SECRET, token};
use crate::support::{Database, clients, live::LiveBox};

const PAGE: &str = include_str!("../../clients/live/page.html");
const BOOK: &str = include_str!("../../../docs/live/browser.md");
/// The address of the relay in the book.
const RELAY: &str = "https://relay.example.com";

/// Publishes numbers for the organization of the clients, and as many events that they must not see.
async fn publish(database: &Database, from: usize, to: usize) {
    for (organization, payload) in [("acme", "n"), ("other", "-n")] {
        database
            .execute(format!(
                "select outbox.publish('shop.orders.create', to_jsonb({payload}), organization => '{organization}') \
                   from generate_series({from}, {to}) as n"
            ))
            .await;
    }
}

/// A gateway for tokens, and for pages of this address.
fn gateway(database: &Database, at: SocketAddr, page: SocketAddr) -> LiveBox {
    let settings = Settings { poll: Duration::from_secs(20), ..Settings::default() };
    let http = http::Settings {
        origins: vec![format!("http://{page}")],
        jwt: Some(Jwt { secret: Some(SECRET.into()), ..Jwt::default() }),
        ..http::Settings::default()
    };
    LiveBox::start_at(at, database, settings, http)
}

/// Everything once, in order, before, while and after the gateway is away.
async fn follow_through_a_restart(
    database: &Database,
    live: LiveBox,
    receiver: &mut Receiver,
    names: &[&str],
) -> LiveBox {
    receiver.wait("the subscriptions", names, |_| true).await;
    publish(database, 1, 40).await;
    receiver.wait("40 events", names, |ledger| ledger.len() >= 40).await;
    let address = live.address;
    live.stop().await;
    publish(database, 41, 80).await;
    let live = gateway(database, address, receiver.address);
    publish(database, 81, 120).await;
    receiver.wait("120 events", names, |ledger| ledger.len() >= 120).await;
    live
}

async fn end(database: &Database, receiver: &mut Receiver, names: &[&str]) {
    database.execute("select outbox.publish('shop.orders.end', '\"end\"', organization => 'acme')").await;
    receiver.wait("the end", names, |ledger| ledger.last() == Some(&json!("end"))).await;
    let mut expected: Vec<Value> = (1..=120).map(Value::from).collect();
    expected.push("end".into());
    for (name, ledger) in receiver.ledgers() {
        assert_eq!(ledger, expected, "{name}");
    }
    assert_eq!(receiver.ledgers().len(), names.len());
}

/// The page of the book, for this relay.
fn page_of_the_book(relay: SocketAddr) -> String {
    let page = BOOK.split_once("```html\n").unwrap().1.split_once("```").unwrap().0;
    assert!(page.lines().count() < 30);
    page.replace(RELAY, &format!("http://{relay}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_every_event_once_by_each_way_of_a_browser_and_through_a_restart() {
    let database = Database::new().await;
    let relay = Arc::new(OnceLock::new());
    let of_book = relay.clone();
    let mut receiver = Receiver::start(PAGE, move || page_of_the_book(*of_book.get().unwrap())).await;
    let live = gateway(&database, "127.0.0.1:0".parse().unwrap(), receiver.address);
    relay.set(live.address).unwrap();
    let (page, address, token) = (receiver.address, live.address, token(3_600));
    let browser = Browser::open(&format!("http://{page}/page?gateway=http://{address}&token={token}"));
    let names = ["EventSource", "WebSocket", "module, websocket", "module, stream", "book"];
    let live = follow_through_a_restart(&database, live, &mut receiver, &names).await;
    // Each connect asks for one: at the start, after the restart, and because one has expired.
    receiver.wait_for_tokens(9).await;
    end(&database, &mut receiver, &names).await;
    browser.close().await;
    live.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_have_every_event_once_through_a_restart_and_expiring_tokens() {
    let database = Database::new().await;
    let mut receiver = Receiver::start(PAGE, String::new).await;
    let live = gateway(&database, "127.0.0.1:0".parse().unwrap(), receiver.address);
    let (relay, report) = (format!("http://{}", live.address), format!("http://{}", receiver.address));
    let token = token(3_600);
    let settings = [("GATEWAY", relay.as_str()), ("RECEIVER", &report), ("TOKEN", &token)];
    let names = ["ws", "module, websocket", "module, stream", "websockets"];
    let following = async {
        let live = follow_through_a_restart(&database, live, &mut receiver, &names).await;
        receiver.wait_for_tokens(6).await;
        end(&database, &mut receiver, &names).await;
        live
    };
    let (_, _, live) = tokio::join!(
        clients::python("live/follow.py", &settings),
        clients::node("live/follow.mjs", &settings),
        following,
    );
    live.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn the_module_waits_resumes_and_acknowledges_as_it_should_and_its_types_fit() {
    clients::node_tests("live/module.test.mjs").await;
    clients::typescript("live/types.mts").await;
    let read =
        |name: &str| std::fs::read_to_string(format!("{}/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    let package: Value = serde_json::from_str(&read("clients/javascript/package.json")).unwrap();
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(read("clients/javascript/LICENSE"), read("LICENSE"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_relay_serves_the_module_to_everybody_and_not_again_to_who_has_it() {
    let database = Database::new().await;
    let page = "127.0.0.1:9".parse().unwrap();
    let live = gateway(&database, "127.0.0.1:0".parse().unwrap(), page);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |tag: &str| {
        let request = client.get(format!("http://{}/client.js", live.address)).header("if-none-match", tag);
        request.send().await.unwrap()
    };
    let answer = ask("\"other\"").await;
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"text/javascript; charset=utf-8".parse().unwrap())
    );
    let tag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(answer.text().await.unwrap(), include_str!("../../../clients/javascript/index.js"));
    for known in [tag.clone(), format!("\"other\", W/{tag}")] {
        let answer = ask(&known).await;
        assert_eq!((answer.status().as_u16(), answer.headers()["etag"].to_str().unwrap()), (304, &*tag));
    }
    live.stop().await;
    database.drop().await;
}
