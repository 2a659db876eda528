//! Every signal that would end a relay drains it, and SIGHUP reloads.

use std::{process::Command, time::Duration};

use crate::support::{Books, ChildRelay, Database, Server};

/// Names of the signals, as `kill -l` has them, and a real-time signal.
const ENDING: [&str; 5] = ["QUIT", "USR1", "PWR", "XCPU", "RTMIN+5"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_signal_that_would_end_a_relay_drains_it() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::from_millis(500)).await;
    server.subscribe(&database, "all", &["**"]).await;
    for (number, name) in ENDING.into_iter().enumerate() {
        let mut relay = ChildRelay::start(&database, &format!("relay-{number}"), &[]).await;
        books.publish(&database.pool, "shop.sold").await;
        server.wait_knocked(number as u64 + 1).await;
        // Not every shell knows real-time signals.
        let process = relay.id().to_string();
        let sent = Command::new("bash").args(["-c", "kill -s \"$0\" \"$1\"", name, &process]).status();
        assert!(sent.unwrap().success(), "{name}");
        relay.wait_for_log("draining").await;
        assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0), "{name}: {:#?}", relay.log());
        assert_eq!(database.count("select count(*) from outbox.owed").await, 0, "{name}");
    }
    assert_eq!(books.requests(), ENDING.len(), "nothing came twice");
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reads_subscriptions_and_their_secrets_again_and_ends_nothing() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::ZERO).await;
    let folder = tempfile::tempdir().unwrap();
    server.subscribe(&database, "all", &["**"]).await;
    database.execute(r#"update outbox.subscriptions set config = config || '{"secret": "file:shop"}'"#).await;
    let settings = [("PGOUTBOX__SECRETS__FOLDER", folder.path().to_str().unwrap())];
    let mut relay = ChildRelay::start(&database, "relay", &settings).await;
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    books.publish(&database.pool, "shop.sold").await;
    std::fs::write(folder.path().join("shop"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
    relay.signal("HUP");
    books.wait_for(1, Duration::from_secs(20)).await;
    database.eventually("select state = 'ok' from outbox.subscriptions").await;
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", relay.log());
    database.drop().await;
}
