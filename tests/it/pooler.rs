//! Behind the real PgBouncer in transaction mode, a version that does not follow prepared statements: relays
//! start, deliver and end, as often as one likes.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use pgoutbox::{
    Servers,
    lab::private_postgres::{Options, PrivatePostgres},
    relay::{Builder, Settings, telemetry::Signal},
};
use serde_json::json;

use crate::support::{
    Books, ChildRelay, Crowd, Database, Good, Habits, LedgerSink, Recorder, RelayBox,
    database::server,
    relay::settings,
    seed,
    server::{Kind, PrivateServer},
};

/// Every driver sends it.
const FLOAT: &str = "extra_float_digits";

/// As root it runs as another user, because it refuses to be root.
const PGBOUNCER: Kind = Kind {
    program: "sh",
    package: "pgbouncer",
    arguments: |directory, port| {
        let script = "[ $(id -u) = 0 ] && user='-u nobody'; chmod 755 \"$0\"; \
                      PATH=$PATH:/usr/sbin; exec \"$(cat \"$0/program\")\" -q $user \"$0/$1.ini\"";
        let listening = format!("\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n");
        let settings = fs::read_to_string(directory.join("settings")).unwrap();
        fs::write(directory.join(format!("{port}.ini")), settings + &listening).unwrap();
        ["-c".into(), script.into(), directory.into(), port.to_string().into()].into()
    },
};

/// A pooler that gives the relays of a database two sessions, in turns: what follows a statement outside of a
/// transaction is in another session. `ignored`: start-up parameters that it does not refuse.
fn pooler(database: &Database, ignored: &str) -> PrivateServer {
    pooler_of("pgbouncer", database, "default_pool_size = 2", ignored)
}

/// The same, of this program, with further settings.
fn pooler_of(program: &str, database: &Database, more: &str, ignored: &str) -> PrivateServer {
    let options = &database.relay_options;
    let here = format!("host={} port={} dbname={}", options.get_host(), options.get_port(), database.name());
    let relay = options.get_username();
    let settings = format!(
        "[databases]\nrelay = {here} user={relay}\n\
         [pgbouncer]\npool_mode = transaction\nauth_type = any\nunix_socket_dir =\n\
         ignore_startup_parameters = {ignored}\nserver_round_robin = 1\nadmin_users = any\n{more}"
    );
    let written = |directory: &Path| {
        fs::write(directory.join("settings"), &settings).unwrap();
        fs::write(directory.join("program"), program).unwrap();
        Vec::new()
    };
    PrivateServer::start_in(PGBOUNCER, written).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_start_deliver_and_end_again_and_again_behind_a_transaction_pooler() {
    let database = Database::new().await;
    let pooler = pooler(&database, FLOAT);
    let relay = format!("postgres://any@127.0.0.1:{}/relay?sslmode=disable", pooler.port());
    let mut good = Good::start().await;
    sqlx::query("select outbox.subscribe('all', '{**}', 'webhook', $1)")
        .bind(json!({ "url": good.url }))
        .execute(&database.pool)
        .await
        .unwrap();
    let settings = [
        ("DATABASE_URL", relay.as_str()),
        ("PGOUTBOX__DATABASE__POOLER", "true"),
        ("PGOUTBOX__RELAY__POLL", "100ms"),
    ];
    for round in 0..3 {
        let mut child = ChildRelay::start(&database, &format!("relay-{round}"), &settings).await;
        let publish = "select outbox.publish('shop.sold', to_jsonb(n)) from generate_series(1, 100) as n";
        database.execute(publish).await;
        assert_eq!(good.take(100).await.len(), 100);
        database.eventually("select not exists (select from outbox.owed)").await;
        child.signal("TERM");
        assert_eq!(child.ended(Duration::from_secs(30)).await, Some(0));
    }
    drop(pooler);
    database.drop().await;
}

/// A relay behind a pooler that LISTENs through it as well.
#[tokio::test(flavor = "multi_thread")]
async fn listen_through_a_pooler_is_noticed_and_said() {
    let database = Database::new().await;
    // Otherwise this version refuses the connection for the settings that come with it.
    let pooler = pooler(&database, "extra_float_digits, options");
    let address = format!("postgres://any@127.0.0.1:{}/relay?sslmode=disable", pooler.port());
    let recorder = Recorder::new();
    database.execute("select outbox.subscribe('all', '{**}', 'recorder')").await;
    let polling = Settings { poll: Some(Duration::from_millis(200)), ..settings("relay") };
    let servers: Servers = address.parse().unwrap();
    let mut relay = RelayBox::start_on(servers.clone(), |builder| {
        builder.pooler(true).listen(servers).settings(polling).sink(recorder.clone())
    })
    .await;
    relay.wait(|signal| *signal == Signal::ListenerDeaf).await;
    database.execute("select outbox.publish('shop.sold', '1')").await;
    recorder.wait_for(1).await;
    assert!(relay.telemetry.render().contains("\npgoutbox_listener_connected 0\n"));
    let said = |arguments: &[&str], listen_url: &str| {
        let environment =
            [("PGOUTBOX__DATABASE__LISTEN_URL", listen_url), ("PGOUTBOX__RELAY__NAME", "other")];
        let output = database.pgoutbox_with(&environment, arguments);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    };
    for command in ["check", "status"] {
        let (deaf, direct) = (said(&[command], &address), said(&[command], &database.url()));
        let words = "database.listen_url: LISTEN hears nothing there";
        assert!(deaf.contains(words) && !direct.contains(words), "{command}: {deaf}; {direct}");
    }
    let again = relay.signals().into_iter().filter(|signal| *signal == Signal::ListenerDeaf).count();
    assert_eq!(again, 0, "it is said once");
    relay.stop().await;
    // With a direct address for LISTEN no event waits for the poll.
    let servers: Servers = address.parse().unwrap();
    let build = |builder: pgoutbox::relay::Builder| {
        let builder = builder.pooler(true).listen(database.relay_options.clone());
        builder.settings(settings("relay")).sink(recorder.clone())
    };
    let mut relay =
        RelayBox::start_on_until(servers, build, |signal| *signal == Signal::ListenerConnected).await;
    relay.wait_asleep().await;
    let published = Instant::now();
    database.execute("select outbox.publish('shop.sold', '2')").await;
    recorder.wait_for(2).await;
    assert!(published.elapsed() < Duration::from_secs(1), "sent after {:?}", published.elapsed());
    relay.stop().await;
    drop(pooler);
    database.drop().await;
}

/// Statements that PgBouncer has passed on.
fn statements(pooler: &PrivateServer) -> u64 {
    let console = format!("postgres://any@127.0.0.1:{}/pgbouncer", pooler.port());
    let asked = Command::new(server().programs().join("psql"))
        .args(["--no-psqlrc", "-A", "-d", &console, "-c", "show stats_totals"])
        .output()
        .unwrap();
    let table = String::from_utf8(asked.stdout).unwrap();
    let counts = table.lines().next().and_then(|head| head.split('|').position(|name| name == "query_count"));
    let row = table.lines().find(|row| row.starts_with("relay|"));
    row.map_or(0, |row| row.split('|').nth(counts.unwrap()).unwrap().parse().unwrap())
}

/// Two relays work behind a pooler until it has passed on 100,000 statements. None fails, as relays and the
/// server see it.
async fn a_hundred_thousand_statements(program: &str, more: &str) {
    let postgres = tokio::task::spawn_blocking(|| PrivatePostgres::start(Options::default()).unwrap());
    let postgres = postgres.await.unwrap();
    let database = Database::new_on(&postgres).await;
    let pooler = pooler_of(program, &database, &format!("default_pool_size = 8\n{more}"), FLOAT);
    let books = Books::default();
    books.subscribe_variously(&database).await;
    let servers: Servers =
        format!("postgres://any@127.0.0.1:{}/relay?sslmode=disable", pooler.port()).parse().unwrap();
    let mut relays = Vec::new();
    for name in ["one", "two"] {
        let settings = Settings { poll: Some(Duration::from_millis(100)), ..settings(name) };
        let build = |builder: Builder| {
            let builder = builder.pooler(true).listen(database.relay_options.clone());
            builder.settings(settings).sink(LedgerSink::new(&books))
        };
        relays.push(RelayBox::start_on(servers.clone(), build).await);
    }
    let seed = seed();
    let habits = Habits { long: Duration::ZERO, rests: Duration::from_millis(200), ..Habits::default() };
    let crowd = Crowd::start(&database, &books, seed, habits);
    let (began, mut looks) = (Instant::now(), tokio::time::interval(Duration::from_secs(1)));
    while statements(&pooler) < 100_000 {
        assert!(began.elapsed() < Duration::from_secs(600), "{} statements", statements(&pooler));
        looks.tick().await;
    }
    crowd.stop().await;
    books.healed(&database).await;
    let passed = statements(&pooler);
    for relay in relays {
        let failed: Vec<String> = relay
            .telemetry
            .render()
            .lines()
            .filter(|line| line.starts_with("pgoutbox_database_failures_total{"))
            .map(str::to_owned)
            .collect();
        assert!(failed.is_empty(), "{failed:?}");
        assert!(relay.stop().await.complete);
    }
    let log = fs::read_to_string(postgres.directory().join("log")).unwrap();
    let errors: Vec<&str> = log.lines().filter(|line| line.contains("ERROR:  ")).collect();
    assert!(errors.is_empty(), "{} errors, such as {}", errors.len(), errors[0]);
    let findings = books.balance(&database, seed).await;
    assert_eq!(findings.duplicates(), 0);
    eprintln!("{passed} statements through {program}, none failed");
    database.pool.close().await;
    drop(pooler);
    tokio::task::spawn_blocking(|| drop(postgres)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute: make test-pooler"]
async fn of_a_hundred_thousand_statements_none_fails_behind_a_pooler_without_prepared_statements() {
    a_hundred_thousand_statements("pgbouncer", "").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute, and builds a newer PgBouncer: make test-pooler"]
async fn of_a_hundred_thousand_statements_none_fails_behind_a_pooler_with_prepared_statements() {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/pgbouncer/pgbouncer");
    assert!(built.exists(), "{}: make install-pgbouncer", built.display());
    for prepared in ["max_prepared_statements = 0", "max_prepared_statements = 100"] {
        a_hundred_thousand_statements(built.to_str().unwrap(), prepared).await;
    }
}
