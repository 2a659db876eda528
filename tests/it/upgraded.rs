//! A cluster that `pg_upgrade` has brought to a newer PostgreSQL.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use pgoutbox::lab::private_postgres::{Options, PrivatePostgres, Stop};

use crate::support::{Database, Recorder, RelayBox};

/// Folder of the programs of a version, which `make postgres` installs.
fn programs(version: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/postgres").join(version).join("bin");
    assert!(folder.join("pg_upgrade").exists(), "run `make postgres VERSION={version}` first");
    folder
}

fn server(version: &str) -> PrivatePostgres {
    PrivatePostgres::start(Options { programs: Some(programs(version)), ..Options::default() }).unwrap()
}

/// Runs a program of PostgreSQL as the account of a server, in its folder.
fn run(server: &PrivatePostgres, program: &Path, arguments: &[&str]) {
    let owner = fs::metadata(server.directory().join("data")).unwrap();
    let is_other = owner.uid() != fs::metadata("/proc/self").unwrap().uid();
    let mut command = if is_other { Command::new("setpriv") } else { Command::new(program) };
    if is_other {
        command
            .args([format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid())])
            .arg("--clear-groups")
            .arg(program);
    }
    let output = command.args(arguments).current_dir(server.directory()).output().unwrap();
    assert!(
        output.status.success(),
        "{program:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

async fn upgraded(from: &str, to: &str) {
    let mut old = server(from);
    let database = Database::new_on(&old).await;
    database
        .execute(
            "create table orders (id integer primary key, total integer); select outbox.capture('orders'); \
             select outbox.subscribe('shop', array['**'], 'recorder', ordering => 'key')",
        )
        .await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute("insert into orders select n, n from generate_series(1, 5) as n").await;
    recorder.wait_for(5).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    relay.stop().await;
    database.execute("update orders set total = 0").await;
    database.pool.close().await;
    old.stop(Stop::Fast);

    let mut new = server(to);
    new.stop(Stop::Fast);
    let data = |server: &PrivatePostgres| server.directory().join("data").display().to_string();
    if to == "18" {
        // Its clusters have checksums by default, those of older versions have none.
        run(&new, &programs(to).join("pg_checksums"), &["--disable", "--pgdata", &data(&new)]);
    }
    let folder = new.directory().display().to_string();
    let [old_programs, new_programs] = [from, to].map(|version| programs(version).display().to_string());
    let arguments = [
        ["--old-bindir", &old_programs],
        ["--new-bindir", &new_programs],
        ["--old-datadir", &data(&old)],
        ["--new-datadir", &data(&new)],
        ["--username", "postgres"],
        ["--socketdir", &folder],
    ];
    run(&new, &programs(to).join("pg_upgrade"), arguments.as_flattened());
    new.start_again().unwrap();

    let database = Database::existing_on(&new);
    let check = database.pgoutbox(&["check"]);
    assert_eq!(check.status.code(), Some(1), "{check:?}");
    assert!(String::from_utf8_lossy(&check.stdout).contains("upgraded with pg_upgrade"), "{check:?}");
    for arguments in [&["adopt", "--keep-pending"][..], &["migrate"], &["migrate", "status"]] {
        let output = database.pgoutbox(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    let recorder = Recorder::new();
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute("delete from orders where id = 1").await;
    let seen = recorder.wait_for(6).await;
    let topics: Vec<&str> = seen.iter().map(|one| one.topic.as_str()).collect();
    assert_eq!(topics.iter().filter(|topic| **topic == "public.orders.update").count(), 5, "{topics:?}");
    assert_eq!(topics.iter().filter(|topic| **topic == "public.orders.delete").count(), 1, "{topics:?}");
    database.eventually("select not exists (select from outbox.owed)").await;
    assert_eq!(recorder.seen().len(), 6, "what was delivered before is not sent again");
    assert!(relay.stop().await.complete);
    database.pool.close().await;
}

#[tokio::test]
#[ignore = "needs several versions of PostgreSQL: make test-upgrade"]
async fn a_cluster_upgraded_by_pg_upgrade_delivers_what_was_left_once_it_is_adopted() {
    for (from, to) in [("14", "18"), ("17", "18")] {
        upgraded(from, to).await;
    }
}
