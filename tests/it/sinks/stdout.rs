//! The stdout sink, read through a pipe.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use crate::support::Database;

fn relay(database: &Database) -> Child {
    tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .arg("run")
        .env_clear()
        .env("DATABASE_URL", database.relay_url())
        .env("PGOUTBOX__HTTP__LISTEN", "off")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn each_event_is_a_line_of_json_on_standard_output_and_nothing_else_is() {
    let database = Database::new().await;
    sqlx::query("select outbox.subscribe('look', array['**'], 'stdout')")
        .execute(&database.pool)
        .await
        .unwrap();
    sqlx::query("select outbox.publish('a.b', to_jsonb(n), key => 'k') from generate_series(1, 300) as n")
        .execute(&database.pool)
        .await
        .unwrap();
    let mut child = relay(&database);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading = async {
        for n in 1..=300 {
            let line: serde_json::Value =
                serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            assert_eq!(
                (&line["payload"], &line["topic"], &line["key"]),
                (&n.into(), &"a.b".into(), &"k".into())
            );
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap();
}

#[tokio::test]
async fn a_reader_that_reads_nothing_blocks_one_thread_however_many_retries() {
    let database = Database::new().await;
    let retry = "{\"schedule\": [\"0s\", \"0s\", \"0s\"]}";
    database
        .execute(format!("select outbox.subscribe('look', array['**'], 'stdout', retry => '{retry}')"))
        .await;
    // More than the buffer of a pipe.
    database.execute("select outbox.publish('a.b', to_jsonb(repeat('x', 200000)))").await;
    let child = relay(&database);
    let threads = || std::fs::read_dir(format!("/proc/{}/task", child.id().unwrap())).unwrap().count();
    let limit = Duration::from_secs(60);
    database.eventually_within(limit, "select exists (select from outbox.owed where attempt = 2)").await;
    let before = threads();
    database.eventually_within(limit, "select exists (select from outbox.owed where attempt = 3)").await;
    assert!(threads() <= before, "{before} threads, and then {}", threads());
}
