//! What a configuration and subscriptions refer to may change while a relay runs.

use std::{fs, time::Duration};

use pgoutbox::{
    lab::private_postgres::{Options, PrivatePostgres},
    sinks::webhook::sign::{self, Key},
};
use serde_json::json;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::{
    sinks::redis::Redis,
    support::{ChildRelay, Database, Good, database::RELAY_LOGIN, server::certificates},
};

const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const NEW: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// Publishes an event and returns which of these secrets have signed its request.
async fn signed_by(database: &Database, good: &mut Good, secrets: &[&str]) -> Vec<bool> {
    database.execute("select outbox.publish('a.b', '1')").await;
    let request = good.take(1).await.remove(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let verifies = |secret: &&str| {
        let key = Key::parse(&(*secret).into()).unwrap();
        sign::verify(&[key], &request.headers, request.body.as_bytes(), now)
    };
    secrets.iter().map(verifies).collect()
}

async fn set_password(database: &Database, password: &str) {
    database.execute(format!("alter role {RELAY_LOGIN} password '{password}'")).await;
}

#[tokio::test]
async fn a_rotated_password_and_a_rotated_secret_are_followed_without_a_restart() {
    let server = PrivatePostgres::start(Options::default()).unwrap();
    let database = Database::new_on(&server).await;
    set_password(&database, "one").await;
    let rules = server.directory().join("data/pg_hba.conf");
    let others = fs::read_to_string(&rules).unwrap();
    fs::write(&rules, format!("host all {RELAY_LOGIN} 127.0.0.1/32 scram-sha-256\n{others}")).unwrap();
    database.execute("select pg_reload_conf()").await;

    let folder = tempfile::tempdir().unwrap();
    let (address, secrets) = (folder.path().join("address"), folder.path().join("secrets"));
    let write_address = |password: &str| {
        let port = server.port();
        fs::write(&address, format!("postgres://{RELAY_LOGIN}:{password}@127.0.0.1:{port}/shop\n")).unwrap();
    };
    write_address("one");
    fs::create_dir(&secrets).unwrap();
    certificates(folder.path());
    let authorities = folder.path().join("ca.pem");
    fs::write(secrets.join("shop"), format!("{OLD}\n")).unwrap();
    fs::write(secrets.join("other"), OLD).unwrap();
    let mut good = Good::start().await;
    sqlx::query("select outbox.subscribe('hooks', '{**}', 'webhook', $1)")
        .bind(json!({"url": good.url, "secret": "file:shop"}))
        .execute(&database.pool)
        .await
        .unwrap();
    let reference = format!("file:{}", address.display());
    let relay = ChildRelay::start(
        &database,
        "follows",
        &[
            ("DATABASE_URL", reference.as_str()),
            ("PGOUTBOX__SECRETS__FOLDER", secrets.to_str().unwrap()),
            ("PGOUTBOX__EGRESS__CA_FILE", authorities.to_str().unwrap()),
            ("PGOUTBOX__TELEMETRY__LOG", "info"),
        ],
    )
    .await;
    assert_eq!(signed_by(&database, &mut good, &[OLD, NEW]).await, [true, false]);

    // What cannot be used is said, and the relay goes on.
    fs::write(&address, "nonsense").unwrap();
    relay.wait_for_log("cannot be used; the relay goes on without").await;
    assert_eq!(signed_by(&database, &mut good, &[OLD, NEW]).await, [true, false]);

    fs::remove_file(&address).unwrap();
    relay.wait_for_log("a file cannot be read; what was read before is used").await;

    // A secret alone interrupts nothing, and no file that is missing keeps it from being followed.
    fs::remove_file(secrets.join("other")).unwrap();
    fs::write(secrets.join("shop"), NEW).unwrap();
    relay.wait_for_log("secrets have changed, the relay follows them").await;
    let mut by = signed_by(&database, &mut good, &[OLD, NEW]).await;
    for _ in 0..20 {
        if by[1] {
            break;
        }
        by = signed_by(&database, &mut good, &[OLD, NEW]).await;
    }
    assert_eq!(by, [true, true]);
    assert_eq!(relay.log().iter().filter(|line| line.contains("relay started")).count(), 1);

    // It may be missing while everything is read again.
    fs::remove_file(secrets.join("shop")).unwrap();
    relay.signal("HUP");
    database.eventually("select state = 'invalid' from outbox.subscriptions").await;
    fs::write(secrets.join("shop"), NEW).unwrap();
    database.eventually("select state = 'ok' from outbox.subscriptions").await;

    // A file that no connection could be made with, and another change.
    let authority = fs::read(&authorities).unwrap();
    fs::write(&authorities, "nonsense").unwrap();
    relay.wait_for_logs("cannot be used; the relay goes on without", 2).await;
    assert_eq!(signed_by(&database, &mut good, &[OLD, NEW]).await, [true, true]);
    fs::write(&authorities, authority).unwrap();

    // The file may change before the database.
    write_address("two");
    relay.wait_for_log("the database refuses, retrying").await;
    set_password(&database, "two").await;
    relay.wait_for_log("files have changed, the relay follows them").await;
    relay.wait_for_logs("relay started", 2).await;
    // Nothing that was open is left, and what is opened now has the new password.
    let others =
        format!("select pg_terminate_backend(pid) from pg_stat_activity where usename = '{RELAY_LOGIN}'");
    database.pool.execute(AssertSqlSafe(others)).await.unwrap();
    assert_eq!(signed_by(&database, &mut good, &[OLD, NEW]).await, [true, true]);
    assert_eq!(relay.log().iter().filter(|line| line.contains("two")).count(), 0);
    assert!(good.next(Duration::from_millis(1)).await.is_none(), "nothing is sent twice");
}

#[tokio::test]
async fn a_rotated_authority_and_password_of_a_broker_are_followed_without_a_restart() {
    let redis = Redis::with_tls("one");
    let database = Database::new().await;
    let folder = tempfile::tempdir().unwrap();
    let (authority, password) = (folder.path().join("ca.pem"), folder.path().join("password"));
    fs::copy(redis.server.directory().join("ca.pem"), &authority).unwrap();
    fs::write(&password, "one\n").unwrap();
    database
        .execute(
            r#"select outbox.subscribe('stream', array['**'], 'redis', '{"stream": "events"}',
                                       retry => '{"initial": "200ms", "multiplier": 1, "max_attempts": 100}')"#,
        )
        .await;
    let (url, reference) =
        (format!("rediss://localhost:{}", redis.server.port()), format!("file:{}", password.display()));
    let relay = ChildRelay::start(
        &database,
        "follows",
        &[
            ("PGOUTBOX__SINKS__REDIS__URL", &url),
            ("PGOUTBOX__SINKS__REDIS__PASSWORD", &reference),
            ("PGOUTBOX__SINKS__REDIS__CA_FILE", authority.to_str().unwrap()),
            ("PGOUTBOX__TELEMETRY__LOG", "info"),
        ],
    )
    .await;
    let publish = "select outbox.publish('a.b', '1')";
    let settled = "select not exists (select from outbox.owed)";
    database.execute(publish).await;
    database.eventually(settled).await;

    // Another authority has signed the server's certificate, and the password is another.
    let renewed = tempfile::tempdir().unwrap();
    certificates(renewed.path());
    let path = |name: &str| renewed.path().join(name).display().to_string();
    redis.tls_cli("one", &["CONFIG", "SET", "requirepass", "two"]);
    redis.tls_cli(
        "two",
        &["CONFIG", "SET", "tls-cert-file", &path("server.pem"), "tls-key-file", &path("server.key")],
    );
    redis.tls_cli("two", &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    database.execute(publish).await;
    let refused = "select exists (select from outbox.attempts where reason = 'tls_failed')";
    database.eventually(refused).await;
    fs::copy(renewed.path().join("ca.pem"), &authority).unwrap();
    database.eventually("select exists (select from outbox.attempts where reason = 'access_denied')").await;
    fs::write(&password, "two\n").unwrap();
    database.eventually(settled).await;
    assert_eq!(redis.tls_cli("two", &["XLEN", "events"]), "2");
    assert_eq!(database.count("select count(*) from outbox.dead_letters").await, 0);
    assert!(relay.log().iter().any(|line| line.contains("files have changed, the relay follows them")));
}
