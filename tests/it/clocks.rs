//! Clocks that are wrong: relays whose time is another one, and a server whose time is set. Only what a
//! process believes is changed (libfaketime).

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres};

use crate::support::{Books, ChildRelay, Database, Good, Server, database::server, pause};

/// The library that `make install-brokers` installs.
fn library() -> String {
    let folders = fs::read_dir("/usr/lib").unwrap().flatten();
    let found: Option<PathBuf> =
        folders.map(|folder| folder.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("run `make install-brokers`").to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_a_relay_decides_neither_when_it_retries_nor_what_it_signs() {
    futures_util::future::join_all(["+2h", "-2h", "+0 x10"].map(deliver_at)).await;
}

/// Delivers with a relay that believes this time: one event after a failed attempt, and one at its time.
async fn deliver_at(time: &str) {
    let database = Database::new().await;
    let mut good = Good::start().await;
    let config = serde_json::json!({"url": good.url});
    let retry = serde_json::json!({"schedule": ["3s", "30s"], "jitter": 0});
    let subscribe = "select outbox.subscribe('all', array['**'], 'webhook', $1, retry => $2)";
    sqlx::query(subscribe).bind(config).bind(retry).execute(&database.pool).await.unwrap();
    let library = library();
    let settings = [("LD_PRELOAD", library.as_str()), ("FAKETIME", time), ("DONT_FAKE_MONOTONIC", "1")];
    let mut relay = ChildRelay::start(&database, "elsewhere", &settings).await;

    good.switch.set_down(true);
    database.execute("select outbox.publish('failing', '1')").await;
    good.take(1).await;
    let failed = Instant::now();
    good.switch.set_down(false);
    let again = good.take(1).await.remove(0);
    let waited = failed.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&waited), "{time}: {waited:?}");
    let signed: u64 = again.headers["webhook-timestamp"].to_str().unwrap().parse().unwrap();
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    assert!(signed.abs_diff(now) < 300, "{time}: signed for {signed} at {now}");

    let published = Instant::now();
    database.execute("select outbox.publish('later', '1', deliver_after => now() + interval '3 s')").await;
    good.take(1).await;
    let waited = published.elapsed();
    assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&waited), "{time}: {waited:?}");
    relay.signal("TERM");
    assert_eq!(relay.ended(Duration::from_secs(20)).await, Some(0), "{:#?}", relay.log());
    database.drop().await;
}

/// Programs of PostgreSQL of which the server takes the time that stands in a file of the folder.
fn programs_with_a_clock(folder: &Path) -> PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let (real, clock) = (server().programs(), folder.join("clock"));
    set(&clock, "+0");
    let programs = folder.join("bin");
    fs::create_dir(&programs).unwrap();
    for program in fs::read_dir(real).unwrap().flatten().filter(|program| program.file_name() != "postgres") {
        symlink(program.path(), programs.join(program.file_name())).unwrap();
    }
    let script = format!(
        "#!/bin/sh\nexec env LD_PRELOAD={} FAKETIME_TIMESTAMP_FILE={} FAKETIME_NO_CACHE=1 \
         DONT_FAKE_MONOTONIC=1 {} \"$@\"\n",
        library(),
        clock.display(),
        real.join("postgres").display()
    );
    fs::write(programs.join("postgres"), script).unwrap();
    fs::set_permissions(programs.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
    programs
}

fn set(clock: &Path, time: &str) {
    // Replaced at once: the server may be reading it.
    let new = clock.with_extension("new");
    fs::write(&new, format!("{time}\n")).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(new, clock).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_clock_is_set_by_an_hour_forward_and_back_loses_nothing_and_holds_nothing_up() {
    const PERMITS: &str = "16";
    let folder = tempfile::tempdir().unwrap();
    let programs = programs_with_a_clock(folder.path());
    let clock = folder.path().join("clock");
    let options = Options { programs: Some(programs), ..Options::default() };
    let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let database = Database::new_on(&server).await;
    let books = Books::default();
    let receiver = Server::open(&books, Duration::from_secs(1)).await;
    receiver.subscribe(&database, "all", &["**"]).await;
    let settings = [("PGOUTBOX__RELAY__PERMITS", PERMITS)];
    let mut first = ChildRelay::start(&database, "first", &settings).await;
    let mut second = ChildRelay::start(&database, "second", &settings).await;
    let ahead = async |is: &str| {
        let question = format!("select abs(extract(epoch from clock_timestamp()) - $1 - {is}) < 60");
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
        let is_so: bool = sqlx::query_scalar(sqlx::AssertSqlSafe(question))
            .bind(now)
            .fetch_one(&database.pool)
            .await
            .unwrap();
        assert!(is_so, "the server is ahead by {is} s");
    };
    ahead("0").await;
    let publish = async |count: usize| {
        for _ in 0..count {
            books.publish(&database.pool, "order").await;
        }
    };

    publish(40).await;
    receiver.wait_knocked(8).await;
    set(&clock, "+3600");
    books.fault("the clock is set forward", 32);
    ahead("3600").await;
    publish(40).await;
    books.healed(&database).await;

    publish(40).await;
    receiver.wait_knocked(96).await;
    set(&clock, "+0");
    books.fault("the clock is set back", 32);
    ahead("0").await;
    // Its leases end in an hour.
    first.kill().await;
    books.fault("kill", 16);
    let killed = Instant::now();
    publish(8).await;
    loop {
        let findings = books.check(&database).await;
        if findings.lost.is_empty() && findings.stuck.is_empty() {
            break;
        }
        assert!(
            killed.elapsed() < Duration::from_secs(60),
            "{findings:?}\n{}",
            database.rows_at_hand().await
        );
        pause(Duration::from_millis(200)).await;
    }
    let took = killed.elapsed();
    second.signal("TERM");
    assert_eq!(second.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", second.log());
    books.balance(&database, 0).await;
    println!("taken over within {took:.1?}");
}
