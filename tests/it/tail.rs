//! Events followed from the command line.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use serde_json::{Value, json};

use crate::{
    gateway::{free_address, start},
    support::{
        ChildRelay, Database,
        tokens::{Signer, claims},
    },
};

const SECRET: &str = "a secret of at least 32 bytes, as RFC 7518 asks for";
const END: Duration = Duration::from_secs(20);

/// `tail` with these arguments, where the gateway at this address is configured.
fn tail(database: &Database, address: SocketAddr, arguments: &[&str]) -> ChildRelay {
    let mut command = ChildRelay::command(database, &["tail"]);
    command.args(arguments).env("PGOUTBOX__HTTP__LISTEN", address.to_string());
    // It needs no database.
    command.env_remove("DATABASE_URL");
    ChildRelay::of(command)
}

async fn publish(database: &Database, n: usize) {
    let sql = format!("select outbox.publish('a.b', '{n}', key => 'k-{n}')");
    database.execute(sql).await;
}

/// The token with which the ended command says that it can be continued.
async fn token(tail: &ChildRelay) -> String {
    tail.wait_for_log("continue with").await;
    let log = tail.log();
    let token = log.iter().find_map(|line| line.strip_prefix("continue with --since "));
    token.unwrap_or_else(|| panic!("no token in {log:#?}")).to_owned()
}

#[tokio::test]
async fn tail_shows_each_event_once_though_the_gateway_restarts_meanwhile() {
    let database = Database::new().await;
    let address = free_address();
    // A client that shows no life for two heartbeats is gone.
    let settings = [("PGOUTBOX__REALTIME__HEARTBEAT", "1s")];
    let mut gateway = start(&database, address, &settings).await;
    let mut tail = tail(&database, address, &["a.*", "--json"]);
    tail.wait_for_log("following").await;
    database.execute("select pg_sleep(4)").await;
    for n in 0..5 {
        publish(&database, n).await;
    }
    tail.wait_printed(5).await;
    assert_eq!(tail.log().len(), 2, "the connection is the first: {:#?}", tail.log());
    gateway.signal("TERM");
    assert_eq!(gateway.ended(END).await, Some(0));
    tail.wait_for_log("the relay stops; reconnecting").await;
    for n in 5..10 {
        publish(&database, n).await;
    }
    let mut gateway = start(&database, address, &[]).await;
    tail.wait_printed(10).await;
    // Killed, so that it says no good-bye.
    gateway.kill().await;
    for n in 10..15 {
        publish(&database, n).await;
    }
    let gateway = start(&database, address, &[]).await;
    let printed = tail.wait_printed(15).await;
    let events: Vec<Value> = printed.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let payloads: Vec<Value> = events.iter().map(|event| event["payload"].clone()).collect();
    assert_eq!(payloads, (0..15).map(Value::from).collect::<Vec<_>>());
    assert_eq!((&events[3]["key"], &events[3]["topic"]), (&json!("k-3"), &json!("a.b")));

    tail.signal("INT");
    assert_eq!(tail.ended(END).await, Some(0), "{:#?}", tail.log());
    assert!(!token(&tail).await.is_empty());
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn tail_ends_after_so_many_and_goes_on_with_the_token_that_it_says() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    for n in 0..6 {
        publish(&database, n).await;
    }
    let mut first = tail(&database, address, &["**", "--since", "1h", "-n", "2", "--json"]);
    assert_eq!(first.ended(END).await, Some(0), "{:#?}", first.log());
    let printed = first.wait_printed(2).await;
    let last: Value = serde_json::from_str(&printed[1]).unwrap();
    assert_eq!(last["token"], token(&first).await);

    let mut second = tail(&database, address, &["**", "--since", &token(&first).await, "-n", "4", "--json"]);
    assert_eq!(second.ended(END).await, Some(0), "{:#?}", second.log());
    let rest = second.wait_printed(4).await;
    let payloads: Vec<i64> = [&printed[..], &rest[..]]
        .concat()
        .iter()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["payload"].as_i64().unwrap())
        .collect();
    assert_eq!(payloads, [0, 1, 2, 3, 4, 5]);

    let key = ["**", "--since", "1h", "-n", "1", "--key", "k-3", "--filter", "payload > 2", "--json"];
    let mut one = tail(&database, address, &key);
    assert_eq!(one.ended(END).await, Some(0), "{:#?}", one.log());
    assert!(one.wait_printed(1).await[0].contains("\"k-3\""));

    database.execute("select outbox.subscribe('board', array['a.*'], 'live', filter => 'payload > 4')").await;
    let mut board = tail(&database, address, &["--channel", "board", "--since", "1h", "-n", "1", "--json"]);
    assert_eq!(board.ended(END).await, Some(0), "{:#?}", board.log());
    assert!(board.wait_printed(1).await[0].contains("\"k-5\""));

    let mut snapshot = tail(&database, address, &["**", "--snapshot", "-n", "6", "--json"]);
    assert_eq!(snapshot.ended(END).await, Some(0), "{:#?}", snapshot.log());
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn people_are_shown_a_line_for_each_event_in_which_nothing_controls_the_terminal() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    let sql = "select outbox.publish('a.b', to_jsonb(repeat('x', 1000)), key => E'k\\x1b[31m')";
    database.execute(sql).await;
    let mut tail = tail(&database, address, &["**", "--since", "1h", "-n", "1", "--utc"]);
    assert_eq!(tail.ended(END).await, Some(0), "{:#?}", tail.log());
    let line = tail.wait_printed(1).await.remove(0);
    let parts: Vec<&str> = line.split("  ").collect();
    assert_eq!((parts[1], parts[2]), ("a.b", "k\\u{1b}[31m"), "{line}");
    assert!(parts[0].ends_with('Z') && line.len() < 300 && line.ends_with('…'), "{line}");
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn json_has_the_payload_as_it_was_written_and_every_field_of_the_event() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    database
        .execute(
            "select outbox.publish('a.b', '{\"total\": 12345678901234567890.10}', key => 'k', \
                                   headers => '{\"x\": \"y\"}', organization => 'acme')",
        )
        .await;
    let mut tail = tail(&database, address, &["**", "--since", "1h", "-n", "1", "--json"]);
    assert_eq!(tail.ended(END).await, Some(0), "{:#?}", tail.log());
    let line = tail.wait_printed(1).await.remove(0);
    assert!(line.contains("12345678901234567890.10"), "{line}");
    let event: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&event["headers"], &event["organization"]), (&json!({"x": "y"}), &json!("acme")));
    let id: uuid::Uuid =
        sqlx::query_scalar("select id from outbox.events").fetch_one(&database.pool).await.unwrap();
    assert_eq!(event["id"], id.to_string());
    assert!(event["created_at"].as_str().unwrap().ends_with('Z'), "{line}");
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_tail_quietly() {
    let database = Database::new().await;
    let address = free_address();
    let gateway = start(&database, address, &[]).await;
    publish(&database, 0).await;
    let mut command = ChildRelay::command(&database, &["tail", "**", "--since", "1h"]);
    command.env("PGOUTBOX__HTTP__LISTEN", address.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut tail = command.spawn().unwrap();
    drop(tail.stdout.take());
    let ended = tokio::time::timeout(END, tail.wait_with_output()).await.expect("it ends").unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(ended.status.code() == Some(0) && !said.contains("pgoutbox:"), "{said}");
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn tail_ends_with_the_code_of_what_is_wrong() {
    let database = Database::new().await;
    let (address, folder) = (free_address(), tempfile::tempdir().unwrap());
    let settings = [("PGOUTBOX__HTTP__TOKEN", "0perator"), ("PGOUTBOX__HTTP__JWT__SECRET", SECRET)];
    let gateway = start(&database, address, &settings).await;
    let url = format!("http://{address}");
    let file = |name: &str, token: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, token).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let operator = file("operator", "0perator\n");
    let client = file("client", &Signer::secret(SECRET).token(None, &claims(json!({}))));
    let nobody = format!("http://{}", free_address());
    let (url, operator, client, nobody) = (url.as_str(), &*operator, &*client, nobody.as_str());
    for (arguments, code, said) in [
        (&["**", "--url", nobody, "--token-file", operator][..], 69, "refused"),
        (&["**", "--url", url], 77, "401"),
        (&["**", "--url", url, "--token-file", client], 77, "topics"),
        (&["**", "--url", url, "--token-file", "/nowhere"], 2, "--token-file"),
        (&["**", "--url", "relay", "--token-file", operator], 2, "--url"),
        (&["--channel", "none", "--url", url, "--token-file", operator], 2, "no channel"),
        (&["**", "--filter", "payload.", "--url", url, "--token-file", operator], 2, "bad_filter"),
        (&["**", "--since", "nonsense", "--url", url, "--token-file", operator], 2, "bad_token"),
        (&["a..b"], 2, "a..b"),
        (&[], 2, "PATTERN"),
        (&["**", "--channel", "b"], 2, "cannot be used"),
        (&["**", "-n", "0"], 2, "-n"),
    ] {
        let mut tail = tail(&database, address, arguments);
        assert_eq!(tail.ended(END).await, Some(code), "{arguments:?}: {:#?}", tail.log());
        tail.wait_for_log(said).await;
    }
    let mut tail = tail(&database, address, &["**", "--url", url, "--token-file", operator]);
    tail.wait_for_log("following").await;
    tail.signal("TERM");
    assert_eq!(tail.ended(END).await, Some(0));
    drop(gateway);
    database.drop().await;
}

#[tokio::test]
async fn a_token_that_is_too_old_ends_tail_with_what_to_do() {
    let database = Database::new().await;
    let address = free_address();
    let mut gateway = start(&database, address, &[]).await;
    publish(&database, 0).await;
    let mut first = tail(&database, address, &["**", "--since", "1h", "-n", "1"]);
    assert_eq!(first.ended(END).await, Some(0));
    publish(&database, 1).await;
    // The next one does not have it in memory.
    gateway.kill().await;
    database.execute("delete from outbox.events").await;
    let gateway = start(&database, address, &[]).await;
    let mut late = tail(&database, address, &["**", "--since", &token(&first).await]);
    assert_eq!(late.ended(END).await, Some(1), "{:#?}", late.log());
    late.wait_for_log("begin anew with --snapshot").await;
    drop(gateway);
    database.drop().await;
}
