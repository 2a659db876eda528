//! Logs and output that nobody can read or store stop nothing.

use std::{
    fs::OpenOptions,
    io::pipe,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{Books, Database, Server};

/// A pipe whose reader is gone.
fn closed() -> Stdio {
    let (_, writer) = pipe().unwrap();
    writer.into()
}

/// A disk without room.
fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_log_cannot_be_written_delivers_settles_and_drains() {
    let database = Database::new().await;
    let books = Books::default();
    let server = Server::open(&books, Duration::ZERO).await;
    server.subscribe(&database, "all", &["**"]).await;
    // Each of its dead letters is a warning in the log.
    let nobody = r#"{"url": "http://127.0.0.1:1/"}"#;
    database
        .execute(format!(
            "select outbox.subscribe('nobody', array['**'], 'webhook', '{nobody}',
                                     retry => '{{\"max_attempts\": 1}}')"
        ))
        .await;
    for (round, log) in [closed as fn() -> Stdio, full].into_iter().enumerate() {
        let mut relay = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .arg("run")
            .env_clear()
            .env("DATABASE_URL", database.relay_url())
            .env("PGOUTBOX__RELAY__NAME", format!("unheard-{round}"))
            .env("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1/32")
            .env("PGOUTBOX__EGRESS__ALLOW_HTTP", "true")
            .env("PGOUTBOX__HTTP__LISTEN", "off")
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..10 {
            books.publish(&database.pool, "shop.sold").await;
        }
        let given_up = 10 * (round + 1);
        let settled = format!(
            "select not exists (select from outbox.owed)
                and (select count(*) from outbox.dead_letters) = {given_up}"
        );
        database.eventually(&settled).await;
        let process = relay.id().expect("it still runs").to_string();
        assert!(Command::new("sh").args(["-c", "kill -s TERM \"$0\"", &process]).status().unwrap().success());
        let ended = tokio::time::timeout(Duration::from_secs(30), relay.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), Some(0), "{ended:?}");
    }
    assert_eq!(books.requests(), 20, "each event came once");
    database.drop().await;
}

#[test]
fn a_command_ends_with_its_own_code_when_its_output_cannot_be_written() {
    let run = |arguments: &[&str], out: Stdio, error: Stdio| {
        Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/nothing")
            .current_dir(std::env::temp_dir())
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(error)
            .status()
            .unwrap()
            .code()
    };
    for lost in [closed as fn() -> Stdio, full] {
        // The message of the error is lost, and its code is not.
        assert_eq!(run(&["status"], Stdio::null(), lost()), Some(69));
        assert_eq!(run(&["explain", "bad_luck"], Stdio::null(), lost()), Some(2));
        assert_eq!(run(&["deliver"], Stdio::null(), lost()), Some(2));
    }
    // Like `pgoutbox explain | head -1`: the reader has what it wants.
    assert_eq!(run(&["explain"], closed(), closed()), Some(0));
    // The rows are lost, and the command says so by its code.
    assert_eq!(run(&["explain"], full(), full()), Some(1));
}
