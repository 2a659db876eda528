//! D-9: the disk of the database is full, first that of the data, then that of the write-ahead log. Nothing
//! is lost, the relay says that it gets nowhere, and it goes on by itself when there is room again.
//!
//! A small disk is a tmpfs, which only root may mount: `make test-full-disk`.

use std::{
    collections::HashSet,
    fs,
    io::{ErrorKind, Write as _},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres, Stop},
    relay::telemetry::Signal,
};

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::support::{Database, Recorder, RelayBox, relay::settings};

/// Events that wait, and whose deliveries need room.
const EVENTS: usize = 20_000;
const LIMIT: Duration = Duration::from_secs(60);

/// A disk of so many MiB, unmounted when it is dropped.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// For the account that the server runs as.
    fn mount(mebibytes: usize, server: &PrivatePostgres) -> Self {
        let owner = fs::metadata(server.directory().join("data")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        // The account must be able to pass through the folder above it.
        let small = Self { folder };
        let options = format!("size={mebibytes}m,uid={},gid={},mode=0700", owner.uid(), owner.gid());
        fs::set_permissions(small.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(small.path()).unwrap();
        run("mount", &["-t", "tmpfs", "-o", &options, "none", small.path().to_str().unwrap()]);
        small
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }

    /// Leaves no room.
    fn fill(&self) {
        let mut ballast = fs::File::create(self.path().join("ballast")).unwrap();
        for size in [1 << 20, 4_096] {
            while match ballast.write_all(&vec![1; size]) {
                Ok(()) => true,
                Err(error) if error.kind() == ErrorKind::StorageFull => false,
                Err(error) => panic!("{error}"),
            } {}
        }
    }

    fn clear(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the server may still have files there.
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

fn run(program: &str, arguments: &[&str]) {
    let ran = Command::new(program).args(arguments).output().unwrap();
    assert!(ran.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
}

/// Events that are scheduled, so that each delivery is a row: routing them needs room.
async fn scheduled(database: &Database) {
    database
        .execute(format!(
            "insert into outbox.events (topic, payload, deliver_after)
             select 'a.b', to_jsonb(n), now() + interval '1 s' from generate_series(1, {EVENTS}) as n"
        ))
        .await;
}

/// All of them came, each once.
fn each_once(recorder: &Recorder) {
    let mut seen: Vec<usize> = recorder.seen().iter().map(|one| one.payload.parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (1..=EVENTS).collect::<Vec<_>>());
}

async fn start(database: &Database, recorder: &Recorder) -> RelayBox {
    let settings = pgoutbox::RelaySettings { lease: Duration::from_secs(10), ..settings("relay") };
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(recorder.clone())).await
}

/// The relay says why it gets nowhere, for longer than a lease.
async fn says_why(relay: &RelayBox, word: &str) {
    let mut again = tokio::time::interval(Duration::from_millis(100));
    let saying = async {
        loop {
            if let Err(why) = relay.health.ready().await
                && why.contains(word)
            {
                return;
            }
            again.tick().await;
        }
    };
    tokio::time::timeout(LIMIT, saying).await.expect("it says that it is not ready");
}

#[tokio::test]
#[ignore = "needs root to mount a small disk: make test-full-disk"]
async fn when_the_disk_of_the_data_is_full_the_relay_says_so_and_goes_on_when_there_is_room() {
    let options =
        Options { settings: vec![("default_tablespace".into(), "small".into())], ..Options::default() };
    let server = PrivatePostgres::start(options).unwrap();
    let disk = SmallDisk::mount(64, &server);
    let small = fs_owned(&disk.path().join("tablespace"), &server);
    let mut owner = PgConnection::connect(&server.url("postgres")).await.unwrap();
    let tablespace = format!("create tablespace small location '{}'", small.display());
    owner.execute(AssertSqlSafe(tablespace)).await.unwrap();
    let database = Database::new_on(&server).await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    scheduled(&database).await;
    disk.fill();
    let recorder = Recorder::new();
    let mut relay = start(&database, &recorder).await;
    for _ in 0..3 {
        relay.wait(|signal| *signal == Signal::DatabaseFailed).await;
    }
    says_why(&relay, "No space left on device").await;
    disk.clear();
    recorder.wait_for(EVENTS).await;
    each_once(&recorder);
    assert_eq!(relay.health.ready().await, Ok(()));
    assert!(relay.stop().await.complete);
}

#[tokio::test]
#[ignore = "needs root to mount a small disk: make test-full-disk"]
async fn when_the_disk_of_the_log_is_full_the_server_stops_and_the_relay_goes_on_after_it_has_started_again()
{
    let settings = [("min_wal_size", "32MB"), ("max_wal_size", "32MB"), ("fsync", "on")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut server =
        PrivatePostgres::start(Options { settings: settings.into(), ..Options::default() }).unwrap();
    let database = Database::new_on(&server).await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    scheduled(&database).await;
    database.pool.close().await;
    server.stop(Stop::Fast);
    let disk = SmallDisk::mount(160, &server);
    let log = server.directory().join("data/pg_wal");
    let moved = disk.path().join("pg_wal");
    run("cp", &["-a", log.to_str().unwrap(), moved.to_str().unwrap()]);
    fs::remove_dir_all(&log).unwrap();
    symlink(&moved, &log).unwrap();
    server.start_again().unwrap();
    let database = Database::existing_on(&server);
    disk.fill();
    let recorder = Recorder::new();
    let mut relay = start(&database, &recorder).await;
    // What is written beside the relay fills what is left of the log.
    let fill = sqlx::query("create table filler as select repeat('x', 1000) from generate_series(1, 200000)");
    fill.execute(&database.pool).await.expect_err("there is no room in the log");
    for _ in 0..3 {
        relay.wait(|signal| *signal == Signal::DatabaseFailed).await;
    }
    disk.clear();
    server.kill();
    server.start_again().unwrap();
    recorder.wait_for(EVENTS).await;
    let distinct: HashSet<String> = recorder.seen().into_iter().map(|one| one.payload).collect();
    assert_eq!(distinct.len(), EVENTS, "nothing is lost");
    assert_eq!(relay.health.ready().await, Ok(()));
    assert!(relay.stop().await.complete);
}

/// A folder of the account that the server runs as.
fn fs_owned(folder: &Path, server: &PrivatePostgres) -> PathBuf {
    let owner = fs::metadata(server.directory().join("data")).unwrap();
    fs::create_dir(folder).unwrap();
    chown(folder, Some(owner.uid()), Some(owner.gid())).unwrap();
    folder.to_owned()
}
