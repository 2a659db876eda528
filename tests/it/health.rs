//! Whether a relay gets anywhere is seen from outside: rows that are missing, work that fails again and
//! again, a login that may not do its work.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use pgoutbox::relay::Settings;

use crate::support::{Database, Recorder, RelayBox, database::server, relay::settings};

async fn publish(database: &Database, payload: &str) {
    database
        .execute(format!("insert into outbox.events (topic, payload) values ('shop.sold', '{payload}')"))
        .await;
}

/// Waits until readiness is as wanted, and returns what it says.
async fn readiness(relay: &RelayBox, wanted: impl Fn(&Result<(), String>) -> bool) -> String {
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    let looking = async {
        loop {
            looks.tick().await;
            let ready = relay.health.ready().await;
            if wanted(&ready) {
                return ready.err().unwrap_or_default();
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.expect("readiness as wanted")
}

/// A relay that has delivered the event `1`, and polls often.
async fn working() -> (Database, Recorder, RelayBox) {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let settings = Settings { poll: Some(Duration::from_millis(200)), ..settings("relay") };
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(recorder.clone())).await;
    publish(&database, "1").await;
    recorder.wait_for(1).await;
    (database, recorder, relay)
}

#[tokio::test]
async fn rows_without_which_nothing_works_are_named_and_migrate_makes_them() {
    let (database, recorder, relay) = working().await;

    // As test cleaners do, which truncate every table that they find. One at a time: locks on several wait
    // in a circle with a statement of the relay now and then.
    for table in ["events", "cursor", "generation", "identity"] {
        database.execute(format!("truncate outbox.{table}")).await;
    }
    publish(&database, "2").await;
    let why = readiness(&relay, Result::is_err).await;
    assert!(why.contains("outbox.cursor") && why.contains("pgoutbox migrate"), "{why}");
    let check = database.pgoutbox(&["check"]);
    let found = String::from_utf8(check.stdout).unwrap();
    assert_eq!(check.status.code(), Some(1), "{found}");
    assert!(
        found.contains("outbox.cursor") && found.contains("outbox.generation") && found.contains("identity"),
        "{found}"
    );
    let migrated = database.pgoutbox(&["migrate"]);
    assert_eq!(migrated.status.code(), Some(0), "{migrated:?}");
    assert!(String::from_utf8_lossy(&migrated.stdout).contains("the row of outbox.cursor"), "{migrated:?}");

    // Without its identity nobody knows whose events these are.
    let adopted = database.pgoutbox(&["adopt", "--keep-pending"]);
    assert_eq!(adopted.status.code(), Some(0), "{adopted:?}");
    recorder.wait_until(|seen| seen.iter().any(|one| one.payload == "2")).await;
    readiness(&relay, Result::is_ok).await;
    publish(&database, "3").await;
    recorder.wait_until(|seen| seen.iter().any(|one| one.payload == "3")).await;
    // A relay that runs has the sink of this test; this process has not.
    database.eventually("select exists (select from outbox.relays)").await;
    database.eventually("select bool_and(state = 'ok') from outbox.subscriptions").await;
    let check = database.pgoutbox(&["check"]);
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_lost_cursor_alone_is_made_again_and_no_event_in_the_log_is_lost() {
    let (database, recorder, relay) = working().await;
    database.execute("truncate outbox.cursor").await;
    publish(&database, "2").await;
    readiness(&relay, Result::is_err).await;
    assert_eq!(database.pgoutbox(&["migrate"]).status.code(), Some(0));
    recorder.wait_until(|seen| seen.iter().any(|one| one.payload == "2")).await;
    readiness(&relay, Result::is_ok).await;
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn a_dump_of_the_schema_alone_is_taken_into_use_by_migrate() {
    let (original, copy) = (Database::new().await, Database::empty().await);
    let mut dump = Command::new(server().programs().join("pg_dump"))
        .args(["--schema-only", "--dbname", &original.plain_url()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let psql = Command::new(server().programs().join("psql"))
        .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-d", &copy.plain_url()])
        .stdin(dump.stdout.take().unwrap())
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(psql.status.success() && dump.wait().unwrap().success(), "{psql:?}");
    let check = copy.pgoutbox(&["check"]);
    assert!(String::from_utf8_lossy(&check.stdout).contains("run `pgoutbox migrate`"), "{check:?}");
    for said in ["applied; the schema outbox is up to date", "the schema outbox is up to date"] {
        let migrated = copy.pgoutbox(&["migrate"]);
        assert!(migrated.status.success(), "{migrated:?}");
        assert!(String::from_utf8_lossy(&migrated.stderr).contains(said), "{migrated:?}");
    }
    copy.execute("select outbox.declare_sink('recorder')").await;
    copy.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let relay = RelayBox::start(&copy, &recorder).await;
    publish(&copy, "1").await;
    recorder.wait_for(1).await;
    assert_eq!(relay.health.ready().await, Ok(()));
    relay.stop().await;
    original.drop().await;
    copy.drop().await;
}

#[tokio::test]
async fn a_relay_whose_work_fails_again_and_again_is_not_ready_and_says_why() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('all', array['**'], 'recorder')").await;
    let recorder = Recorder::new();
    let settings = Settings {
        poll: Some(Duration::from_millis(200)),
        lease: Duration::from_secs(2),
        ..settings("relay")
    };
    let relay =
        RelayBox::start_with(&database, |builder| builder.settings(settings).sink(recorder.clone())).await;
    readiness(&relay, Result::is_ok).await;
    database.execute("revoke select on outbox.events from outbox_relay").await;
    publish(&database, "1").await;
    let why = readiness(&relay, Result::is_err).await;
    assert!(why.starts_with("no progress for ") && why.contains("permission denied"), "{why}");
    database.execute("grant select on outbox.events to outbox_relay").await;
    recorder.wait_for(1).await;
    readiness(&relay, Result::is_ok).await;

    // A relay reports it with its other figures.
    database.eventually("select exists (select from outbox.relays)").await;
    database
        .execute("update outbox.relays set no_progress_since = now(), no_progress_why = 'no rights'")
        .await;
    let status = String::from_utf8(database.pgoutbox(&["status"]).stderr).unwrap();
    assert!(status.contains("relay relay: no progress since ") && status.contains("no rights"), "{status}");
    relay.stop().await;
    database.drop().await;
}

#[tokio::test]
async fn check_asks_what_a_relay_asks_at_its_start() {
    let database = Database::new().await;
    let check = |url: String| {
        let output = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
            .arg("check")
            .env_clear()
            .env("DATABASE_URL", url)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(check(database.relay_url()), (Some(0), String::new()));
    let (code, found) = check(database.url());
    assert!(code == Some(1) && found.contains("the login is a superuser"), "{found}");
    database.execute("revoke insert on outbox.deliveries from outbox_relay").await;
    let (code, found) = check(database.relay_url());
    assert!(code == Some(1) && found.contains("outbox_relay"), "{found}");
    database.drop().await;
}
