//! Addresses of databases as people have them, and what is said when one does not lead anywhere.

use std::process::{Command, Output, Stdio};

use crate::support::{
    Database,
    database::server,
    deliveries::{deliveries, registry},
};

fn run(address: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", address)
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[tokio::test]
async fn each_form_of_an_address_leads_to_the_database() {
    let database = Database::new().await;
    let (name, port, folder) = (database.name(), server().port(), server().directory().display());
    let encoded = folder.to_string().replace('/', "%2F");
    for address in [
        format!("postgres://postgres@127.0.0.1:{port}/{name}"),
        format!("'postgres://postgres:a#b?c@127.0.0.1:{port}/{name}'"),
        format!("postgres://postgres@/{name}?host={folder}&port={port}"),
        format!("postgres://postgres@{encoded}:{port}/{name}"),
        format!("postgres://?user=postgres&host={folder}&port={port}&dbname={name}"),
        format!("host={folder} port={port} user=postgres dbname='{name}'"),
    ] {
        let output = run(&address, &["migrate", "--dry-run"]);
        assert!(output.status.success(), "{address}: {output:?}");
    }
    let refused = run(&format!("postgres://postgres:x/y@127.0.0.1:{port}/{name}"), &["status"]);
    let words = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(78), "{words}");
    assert!(words.contains("%2F") && !words.contains("x/y"), "{words}");
    database.drop().await;
}

#[tokio::test]
async fn the_words_of_postgresql_are_shown_without_a_line_of_its_source() {
    let database = Database::new().await;
    let nowhere = server().url("nowhere");
    database.execute("alter table outbox.events rename to gone").await;
    let registry = registry(&format!("[sinks.postgres]\nurl = {nowhere:?}"));
    let of_the_sink = deliveries(&registry, "postgres", serde_json::json!({}), 1);
    let report = of_the_sink.outlet.send(&of_the_sink).await.remove(0).answer.unwrap();
    let said = [
        run(&nowhere, &["migrate"]).stderr,
        run(&nowhere, &["status"]).stderr,
        run(&nowhere, &["check"]).stderr,
        run(&nowhere, &["run"]).stderr,
        run(&database.url(), &["publish", "a.b", "1"]).stderr,
        report.into_bytes(),
    ];
    for words in said.map(|words| String::from_utf8(words).unwrap()) {
        assert!(!words.is_empty() && !words.contains("at line"), "{words}");
    }
    let words = String::from_utf8(run(&nowhere, &["migrate"]).stderr).unwrap();
    assert!(words.contains("database \"nowhere\" does not exist"), "{words}");
    database.drop().await;
}
