//! What is said when a database does not fit: rights, connections, a schema of somebody else.

use std::process::{Command, Output, Stdio};

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres},
    sinks::postgres::INBOX,
};
use sqlx::{ConnectOptions as _, Executor as _};
use uuid::Uuid;

use crate::support::{ChildRelay, Database};

/// Exit code and standard error of the binary as this login, `NAME` or `NAME:PASSWORD`.
fn run(database: &Database, login: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let (name, password) = login.split_once(':').unwrap_or((login, ""));
    let options = database.options.clone().username(name);
    let options = if password.is_empty() { options } else { options.password(password) };
    let Output { status, stderr, .. } = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", options.to_url_lossy().to_string())
        .env("PGOUTBOX__HTTP__LISTEN", "off")
        .current_dir(std::env::temp_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

async fn login(database: &Database, rights: &str) -> String {
    let name = format!("login_{}", Uuid::new_v4().simple());
    database.execute(format!("create role {name} login {rights}")).await;
    name
}

#[tokio::test]
async fn a_login_that_lacks_rights_is_told_the_role_and_the_statement() {
    let database = Database::new().await;
    let (stranger, heir) =
        (login(&database, "").await, login(&database, "noinherit in role outbox_relay, outbox_admin").await);
    let grant = format!("grant outbox_relay to {stranger}");
    for (name, arguments, words) in [
        (&stranger, &["run"][..], ["no member of outbox_relay", grant.as_str()]),
        (&stranger, &["check"], ["no member of outbox_relay", grant.as_str()]),
        (&stranger, &["status"], ["outbox_monitor", "grant outbox_monitor to"]),
        (&stranger, &["publish", "a.b", "1"], ["outbox_publisher", "grant outbox_publisher to"]),
        (&stranger, &["subscriptions", "pause", "all"], ["outbox_admin", "grant outbox_admin to"]),
        (&stranger, &["dead-letters", "redrive", "--all"], ["outbox_admin", "grant outbox_admin to"]),
        (&heir, &["run"], ["does not inherit", &format!("alter role {heir} inherit")]),
        (&heir, &["dead-letters", "list"], ["inherits the rights of outbox_admin", "grant"]),
    ] {
        let (code, said) = run(&database, name, arguments);
        assert_eq!(code, Some(77), "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?} does not say {word:?}: {said}");
        }
    }
    // Members who inherit lack what only its owner may do.
    database.execute(format!("drop role {stranger}, {heir}")).await;
    database.drop().await;
}

#[tokio::test]
async fn a_server_without_connections_is_quoted_and_told_how_many_a_relay_wants() {
    let database = Database::new().await;
    let name = login(&database, "in role outbox_relay connection limit 0").await;
    let (code, said) = run(&database, &name, &["run"]);
    assert_eq!(code, Some(69), "{said}");
    for word in ["too many connections for role", "a relay wants up to 43", "32 for SQL functions"] {
        assert!(said.contains(word), "it does not say {word:?}: {said}");
    }
    // The first connections of a relay succeed, and then there is none for its stages.
    database.execute(format!("alter role {name} connection limit 4")).await;
    let config = r#"{"url": "http://127.0.0.1:9/"}"#;
    database.execute(format!("select outbox.subscribe('away', '{{**}}', 'webhook', '{config}')")).await;
    database.execute("select outbox.publish('a.b', '1') from generate_series(1, 100)").await;
    let address = database.options.clone().username(&name).to_url_lossy().to_string();
    let relay = ChildRelay::start(&database, "crowded", &[("DATABASE_URL", address.as_str())]).await;
    relay.wait_for_log("too many connections for role").await;
    relay.wait_for_log("a relay wants up to 43").await;
    drop(relay);
    database.eventually(&format!("select count(*) = 0 from pg_stat_activity where usename = '{name}'")).await;
    database.execute(format!("drop role {name}")).await;
    database.drop().await;
}

#[tokio::test]
async fn a_schema_outbox_of_somebody_else_is_refused_before_anything_is_written() {
    for theirs in [
        "create table outbox.orders (id int)",
        "create table outbox.migrations (id int, name text)",
        "create function outbox.notify_all() returns int language sql as 'select 1'",
    ] {
        let database = Database::empty_beside_roles().await;
        database.execute("create schema outbox").await;
        database.execute(theirs).await;
        let everything = "select (select count(*) from pg_class) + (select count(*) from pg_proc)";
        let before = database.count(everything).await;
        for arguments in [&["migrate"][..], &["migrate", "--dry-run"], &["run"], &["check"]] {
            let (code, said) = run(&database, "postgres", arguments);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("is not pgoutbox's: it holds outbox."), "{said}");
        }
        assert_eq!(database.count(everything).await, before, "{theirs}");
        database.drop().await;
    }
    let receiver = Database::empty_beside_roles().await;
    receiver.pool.execute(INBOX).await.unwrap();
    let (code, said) = run(&receiver, "postgres", &["migrate"]);
    assert_eq!(code, Some(0), "{said}");
    receiver.drop().await;
}

#[tokio::test]
async fn a_login_that_the_server_refuses_ends_with_77_and_its_words() {
    let server = PrivatePostgres::start(Options::default()).unwrap();
    let database = Database::new_on(&server).await;
    let name = login(&database, "password 'right'").await;
    let rules = server.directory().join("data/pg_hba.conf");
    let others = std::fs::read_to_string(&rules).unwrap();
    std::fs::write(&rules, format!("host all {name} 127.0.0.1/32 scram-sha-256\n{others}")).unwrap();
    database.execute("select pg_reload_conf()").await;
    for arguments in [&["status"][..], &["check"], &["migrate"], &["run"]] {
        let (code, said) = run(&database, &format!("{name}:wrong"), arguments);
        assert_eq!(code, Some(77), "{arguments:?}: {said}");
        assert!(said.contains("password authentication failed for user"), "{arguments:?}: {said}");
        assert!(!said.contains("at line") && !said.contains("wrong"), "{arguments:?}: {said}");
    }
}
