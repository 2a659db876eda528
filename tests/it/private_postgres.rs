//! The private PostgreSQL of demo, benchmark and tests.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc::sync_channel,
    time::{Duration, Instant},
};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres, Stop};
use sqlx::{Connection, PgConnection};

/// Variable that marks the process that owns a server until it is killed.
const OWNER: &str = "PGOUTBOX_TEST_OWNER";

fn start() -> PrivatePostgres {
    PrivatePostgres::start(Options::default()).unwrap()
}

async fn ask(url: &str, sql: &'static str) -> Result<String, sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    let answer = sqlx::query_scalar(sql).fetch_one(&mut connection).await?;
    connection.close().await?;
    Ok(answer)
}

/// Polls until a condition holds, with a deadline.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let (_kept, pause) = sync_channel::<()>(1);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        let _ = pause.recv_timeout(Duration::from_millis(20));
    }
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[tokio::test]
async fn it_starts_as_any_user_and_answers_over_tcp_and_socket() {
    let postgres = start();
    postgres.create_database("shop \"1\"").unwrap();
    postgres.create_database("shop").unwrap();
    assert!(postgres.create_database("shop").unwrap_err().to_string().contains("create database"));
    for url in [postgres.url("shop"), postgres.socket_url("shop")] {
        assert_eq!(
            ask(&url, "select current_database() || '/' || current_user").await.unwrap(),
            "shop/postgres"
        );
    }
    let url = postgres.url("postgres");
    for (setting, value) in [
        ("select current_setting('fsync')", "off"),
        ("select current_setting('max_connections')", "300"),
        ("select current_setting('max_prepared_transactions')", "50"),
        ("select current_setting('listen_addresses')", "127.0.0.1"),
    ] {
        assert_eq!(ask(&url, setting).await.unwrap(), value, "{setting}");
    }
    assert!(postgres.socket_url("x").len() < 200 && postgres.directory().as_os_str().len() <= 80);
}

#[test]
fn it_can_be_shared_by_the_tests_of_a_process() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<PrivatePostgres>();
}

#[tokio::test]
async fn settings_are_taken_and_a_durable_server_flushes() {
    let settings =
        vec![("work_mem".to_owned(), "7MB".to_owned()), ("cluster_name".to_owned(), "it's ours".to_owned())];
    let postgres = PrivatePostgres::start(Options { settings, durable: true, ..Options::default() }).unwrap();
    let url = postgres.url("postgres");
    assert_eq!(ask(&url, "select current_setting('work_mem')").await.unwrap(), "7MB");
    assert_eq!(ask(&url, "select current_setting('cluster_name')").await.unwrap(), "it's ours");
    assert_eq!(ask(&url, "select current_setting('fsync')").await.unwrap(), "on");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_survives_a_crash_and_a_stop() {
    let mut postgres = start();
    let url = postgres.url("postgres");
    let mut connection = PgConnection::connect(&url).await.unwrap();
    sqlx::query("create table kept as select 'kept'::text as word").execute(&mut connection).await.unwrap();
    let port = postgres.port();

    postgres.kill();
    assert!(!answers(port), "a killed server accepts no connections");
    assert!(sqlx::query("select 1").execute(&mut connection).await.is_err(), "its backends are dead too");
    postgres.start_again().unwrap();
    assert_eq!(postgres.port(), port);
    assert_eq!(ask(&url, "select word from kept").await.unwrap(), "kept");

    for how in [Stop::Fast, Stop::Immediate] {
        postgres.stop(how);
        assert!(!answers(port));
        assert!(ask(&url, "select word from kept").await.is_err());
        postgres.start_again().unwrap();
        postgres.start_again().unwrap(); // does nothing while it runs
        assert_eq!(ask(&url, "select word from kept").await.unwrap(), "kept");
    }
}

#[test]
fn a_dropped_server_leaves_nothing_behind() {
    let postgres = start();
    let (directory, port, process) =
        (postgres.directory().to_owned(), postgres.port(), postgres.process().unwrap());
    assert!(directory.exists() && answers(port));
    drop(postgres);
    assert!(!directory.exists(), "{} is still there", directory.display());
    assert!(!answers(port));
    assert!(!Path::new("/proc").join(process.to_string()).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_outlives_the_task_that_started_it() {
    // The thread of this runtime ends; the server must not.
    let postgres = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::task::spawn_blocking(start).await.unwrap() })
    })
    .join()
    .unwrap();
    assert_eq!(ask(&postgres.url("postgres"), "select 'there'").await.unwrap(), "there");
    drop(postgres);
}

#[test]
fn a_server_stops_when_its_owner_is_killed_and_the_next_start_removes_its_directory() {
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "private_postgres::the_owner_of_a_server_that_is_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(OWNER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut port, mut directory) = (None, None);
    for line in BufReader::new(owner.stdout.take().unwrap()).lines() {
        if let Some((_, rest)) = line.unwrap().split_once("OWNED ") {
            let (first, second) = rest.split_once(' ').unwrap();
            port = first.parse::<u16>().ok();
            directory = Some(PathBuf::from(second));
            break;
        }
    }
    let (port, directory) = (port.expect("the owner names the port"), directory.unwrap());
    assert!(answers(port));

    owner.kill().unwrap();
    owner.wait().unwrap();
    eventually("the server of a killed owner stops", || {
        !answers(port) && !directory.join("data/postmaster.pid").exists()
    });

    drop(start());
    assert!(!directory.exists(), "{} was not removed by the next start", directory.display());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test above, as the process that is killed"]
async fn the_owner_of_a_server_that_is_killed() {
    if std::env::var_os(OWNER).is_none() {
        return;
    }
    let postgres = tokio::task::spawn_blocking(start).await.unwrap();
    println!("OWNED {} {}", postgres.port(), postgres.directory().display());
    std::future::pending::<()>().await;
}
