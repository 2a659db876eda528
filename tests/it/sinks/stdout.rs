//! The relay's standard output, read as a program behind a pipe would.

use std::{process::Stdio, time::Duration};

use tokio::io::{AsyncBufReadExt, BufReader};

use crate::support::Database;

#[tokio::test]
async fn each_event_is_a_line_of_json_on_standard_output_and_nothing_else_is() {
    let database = Database::new().await;
    sqlx::query("select outbox.subscribe('look', array['**'], 'stdout')").execute(&database.pool).await.unwrap();
    sqlx::query("select outbox.publish('a.b', to_jsonb(n), key => 'k') from generate_series(1, 300) as n")
        .execute(&database.pool)
        .await
        .unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
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
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reading = async {
        for n in 1..=300 {
            let line: serde_json::Value = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
            assert_eq!((&line["payload"], &line["topic"], &line["key"]), (&n.into(), &"a.b".into(), &"k".into()));
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap();
}
