//! Failover: a standby is promoted under load, roles flip with open sockets, and an address names several
//! hosts. No relay is restarted.

use std::{
    collections::BTreeSet,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use pgoutbox::{
    Servers,
    lab::private_postgres::{Options, PrivatePostgres},
    relay::{Builder, Settings, telemetry::Signal},
};
use serde_json::json;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use uuid::Uuid;

use crate::gateway::free_address;
use crate::support::{
    Books, Crowd, Database, Habits, LedgerSink, RelayBox, database::RELAY_LOGIN, ledger::Ended,
    live::LiveBox, relay::settings, seed,
};

/// A relay sends again so long after there is a server that can be written to.
const SENDS_AGAIN: Duration = Duration::from_secs(5);

const PROMOTIONS: &str = "pgoutbox_database_promotions_total";

fn habits() -> Habits {
    Habits { publishers: 4, long: Duration::ZERO, prepares: false, patient: true, ..Habits::default() }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

async fn server() -> PrivatePostgres {
    blocking(|| PrivatePostgres::start(Options::default()).unwrap()).await
}

/// A primary with the schema outbox, and its standby.
struct Pair {
    primary: PrivatePostgres,
    standby: PrivatePostgres,
    /// On the primary.
    database: Database,
}

impl Pair {
    async fn start(is_synchronous: bool) -> Self {
        let primary = server().await;
        let database = Database::new_on(&primary).await;
        let (primary, standby) = blocking(move || {
            let standby = primary.standby().unwrap();
            (primary, standby)
        })
        .await;
        if is_synchronous {
            database.execute("alter system set synchronous_standby_names = 'standby'").await;
            database.execute("select pg_reload_conf()").await;
        }
        let state = if is_synchronous { "sync_state = 'sync'" } else { "state = 'streaming'" };
        database
            .eventually(&format!(
                "select exists (select from pg_stat_replication where application_name = 'standby' and {state})"
            ))
            .await;
        Self { primary, standby, database }
    }

    /// Both servers, with this login.
    fn address(&self, login: &str) -> String {
        let (one, other) = (self.primary.port(), self.standby.port());
        format!("postgres://{login}@127.0.0.1:{one},127.0.0.1:{other}/shop?sslmode=disable")
    }

    fn servers(&self, login: &str) -> Servers {
        self.address(login).parse().unwrap()
    }

    /// Kills the primary and promotes the standby. Returns the database on it.
    async fn fail_over(self) -> (Database, PrivatePostgres) {
        let Self { mut primary, standby, database } = self;
        let standby = blocking(move || {
            primary.kill();
            standby.promote().unwrap();
            standby
        })
        .await;
        database.pool.close().await;
        (Database::existing_on(&standby), standby)
    }
}

/// Waits until a request for this event has come.
async fn sent(books: &Books, event: Uuid) -> Duration {
    let (began, mut looks) = (Instant::now(), tokio::time::interval(Duration::from_millis(10)));
    while !books.journal().requests.iter().any(|request| request.event == event) {
        assert!(began.elapsed() < 6 * SENDS_AGAIN, "nothing was sent within {:?}", began.elapsed());
        looks.tick().await;
    }
    let took = began.elapsed();
    assert!(took < SENDS_AGAIN, "sent only after {took:?}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_that_is_promoted_under_load_loses_nothing_and_repeats_nothing() {
    let seed = seed();
    let pair = Pair::start(true).await;
    let books = Books::default();
    books.subscribe_variously(&pair.database).await;
    // It polls slowly: after the promotion the doorbell must be heard.
    let build = |builder: Builder| builder.settings(settings("relay")).sink(LedgerSink::new(&books));
    let mut relay = RelayBox::start_on(pair.servers(RELAY_LOGIN), build).await;
    let crowd = Crowd::start_on(&pair.servers("postgres"), &books, seed, habits());
    books.wait_for(300, Duration::from_secs(20)).await;
    let (database, standby) = pair.fail_over().await;
    let event = books.publish(&database.pool, "alone").await;
    eprintln!("sent again {:?} after the promotion", sent(&books, event).await);
    let so_far = books.requests();
    books.wait_for(so_far + 200, Duration::from_secs(20)).await;
    relay.wait(|signal| *signal == Signal::Promoted).await;
    crowd.stop().await;
    relay.wait_asleep().await;
    let event = books.publish(&database.pool, "alone").await;
    let rung = sent(&books, event).await;
    assert!(rung < Duration::from_secs(1), "the doorbell rings on the new server: {rung:?}");
    books.healed(&database).await;
    assert!(relay.telemetry.render().contains(&format!("{PROMOTIONS} 1\n")));
    assert!(relay.stop().await.complete);
    let findings = books.balance(&database, seed).await;
    assert_eq!(findings.duplicates(), 0);
    database.pool.close().await;
    blocking(|| drop(standby)).await;
}

/// An address behind which the server changes, such as a virtual one.
struct Door {
    port: u16,
    leads_to: Arc<AtomicU16>,
    _tasks: JoinSet<()>,
}

impl Door {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (port, leads_to) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU16::new(port)));
        let (mut tasks, behind) = (JoinSet::new(), leads_to.clone());
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", behind.load(Ordering::Acquire)));
                open.spawn(async move {
                    if let Ok(mut server) = server.await {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { port, leads_to, _tasks: tasks }
    }

    fn servers(&self, login: &str) -> Servers {
        format!("postgres://{login}@127.0.0.1:{}/shop?sslmode=disable", self.port).parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_asynchronous_standby_lost_is_named_and_everything_else_is_delivered() {
    let seed = seed();
    let pair = Pair::start(false).await;
    let door = Door::to(pair.primary.port()).await;
    let books = Books::default();
    books.subscribe_variously(&pair.database).await;
    let few = Settings { permits: 32, permits_per_subscription: 16, ..settings("relay") };
    let build = |builder: Builder| builder.settings(few.clone()).sink(LedgerSink::new(&books));
    let mut relay = RelayBox::start_on(door.servers(RELAY_LOGIN), build).await;
    let crowd = Crowd::start_on(&door.servers("postgres"), &books, seed, habits());
    books.wait_for(200, Duration::from_secs(20)).await;
    // From here on the standby gets nothing.
    let standby = Database::existing_on(&pair.standby);
    standby.execute("alter system set primary_conninfo = ''").await;
    standby.execute("select pg_reload_conf()").await;
    standby.eventually("select not exists (select from pg_stat_wal_receiver)").await;
    standby.pool.close().await;
    let kept = books.requests();
    let lacked = books.publish(&pair.database.pool, "alone").await;
    books.wait_for(kept + 200, Duration::from_secs(20)).await;
    sent(&books, lacked).await;
    // New connections lead to a standby for a moment.
    door.leads_to.store(pair.standby.port(), Ordering::Release);
    let (database, standby) = pair.fail_over().await;
    let forgotten = books.requests() - kept;
    let event = books.publish(&database.pool, "alone").await;
    eprintln!("sent again {:?} after the promotion", sent(&books, event).await);
    relay.wait(|signal| *signal == Signal::Promoted).await;
    let so_far = books.requests();
    books.wait_for(so_far + 200, Duration::from_secs(20)).await;
    crowd.stop().await;
    books.healed(&database).await;
    assert!(relay.telemetry.render().contains(&format!("{PROMOTIONS} 1\n")));
    assert!(relay.stop().await.complete);
    let findings = books.check(&database).await;
    eprintln!("seed {seed}: {findings:?}");
    assert!(findings.lost.is_empty() && findings.stuck.is_empty(), "{findings:?}");
    // What was sent and is not in the log was committed on the server that is gone.
    let committed: BTreeSet<Uuid> = books
        .journal()
        .transactions
        .iter()
        .filter(|transaction| transaction.ended != Ended::Aborted)
        .flat_map(|transaction| transaction.events.iter().map(|event| event.id))
        .collect();
    assert!(!findings.phantom.is_empty(), "the standby lacked something");
    let invented: Vec<_> = findings.phantom.iter().filter(|(event, _)| !committed.contains(event)).collect();
    assert!(invented.is_empty(), "{invented:?}");
    let allowed = forgotten + 32;
    assert!(findings.duplicates() <= allowed, "{} of {allowed} duplicates", findings.duplicates());
    database.pool.close().await;
    blocking(|| drop(standby)).await;
}

/// What the standby has of it is a lease, which nobody's death ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_and_not_recorded_before_a_promotion_is_sent_again_when_its_lease_has_ended() {
    let pair = Pair::start(false).await;
    let door = Door::to(pair.primary.port()).await;
    let books = Books::default();
    books.subscribe(&pair.database, "all", &["**"], None).await;
    let never = Settings { poll: Some(Duration::from_secs(3_600)), ..settings("relay") };
    let sink = LedgerSink::new(&books);
    let closed = sink.gate.write().await;
    let build = |builder: Builder| builder.settings(never.clone()).sink(sink.clone());
    let mut relay = RelayBox::start_on(door.servers(RELAY_LOGIN), build).await;
    let event = books.publish(&pair.database.pool, "alone").await;
    let standby = Database::existing_on(&pair.standby);
    standby.eventually("select exists (select from outbox.pages)").await;
    standby.execute("alter system set primary_conninfo = ''").await;
    standby.execute("select pg_reload_conf()").await;
    standby.eventually("select not exists (select from pg_stat_wal_receiver)").await;
    standby.pool.close().await;
    drop(closed);
    pair.database.eventually("select not exists (select from outbox.pages)").await;
    let came = || books.journal().requests.iter().filter(|request| request.event == event).count();
    assert_eq!(came(), 1);
    door.leads_to.store(pair.standby.port(), Ordering::Release);
    let (database, standby) = pair.fail_over().await;
    relay.wait(|signal| *signal == Signal::Promoted).await;
    // The lease is of ten seconds.
    books.wait_for(2, Duration::from_secs(40)).await;
    assert_eq!(came(), 2);
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
    database.pool.close().await;
    blocking(|| drop(standby)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_with_open_sockets_goes_on_when_a_server_that_was_read_only_may_be_written_again() {
    let seed = seed();
    let server = server().await;
    let database = Database::new_on(&server).await;
    let books = Books::default();
    books.subscribe_variously(&database).await;
    let build = |builder: Builder| builder.settings(settings("relay")).sink(LedgerSink::new(&books));
    let mut relay = RelayBox::start_on(&database.relay_options, build).await;
    let crowd = Crowd::start(&database, &books, seed, habits());
    for round in 1..=2 {
        books.wait_for(150 * round, Duration::from_secs(20)).await;
        relay.signals();
        database.execute("alter system set default_transaction_read_only = on").await;
        database.execute("select pg_reload_conf()").await;
        for _ in 0..5 {
            relay.wait(|signal| *signal == Signal::DatabaseFailed).await;
        }
        let ready = relay.health.ready().await.unwrap_err();
        assert!(ready.contains("read-only"), "{ready}");
        database.execute("alter system reset default_transaction_read_only").await;
        database.execute("select pg_reload_conf()").await;
        database.eventually("select not current_setting('transaction_read_only')::boolean").await;
        // A session that was there may not have read it yet.
        let fresh = Database::existing_on(&server);
        let event = books.publish(&fresh.pool, "alone").await;
        eprintln!("sent again {:?} after the server could be written to", sent(&books, event).await);
        fresh.pool.close().await;
    }
    crowd.stop().await;
    books.healed(&database).await;
    assert!(relay.stop().await.complete);
    assert_eq!(books.balance(&database, seed).await.duplicates(), 0);
    database.pool.close().await;
    blocking(|| drop(server)).await;
}

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

/// Where a command with this address gets: the exit code, and what it says.
fn told(address: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(address, arguments);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Of several hosts commands find the one that can be written to, and say what is wrong with each if there is
/// none.
async fn commands_find_the_right_server(pair: &Pair) {
    let (primary, standby) = (pair.primary.port(), pair.standby.port());
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().unwrap().port();
    let closed = free_address().port();
    let address = |ports: &[u16], attribute: &str| {
        let hosts: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        format!("postgres://postgres@{}/shop?sslmode=disable{attribute}", hosts.join(","))
    };
    for ports in [[primary, standby], [standby, primary], [closed, primary], [silent, primary]] {
        let began = Instant::now();
        let (code, words) = told(&address(&ports, ""), &["publish", "other.topic", "1"]);
        assert_eq!(code, Some(0), "{words}");
        assert!(began.elapsed() < Duration::from_secs(3), "a host that is down costs a moment");
    }
    let (code, words) = told(&address(&[closed, standby], ""), &["status"]);
    assert_eq!(code, Some(69), "{words}");
    assert!(words.contains("is a standby") && words.contains(&format!("127.0.0.1:{closed}: ")), "{words}");
    let reading = address(&[primary, standby], "&target_session_attrs=standby");
    let (code, words) = told(&reading, &["status"]);
    assert_eq!(code, Some(0), "{words}");
    let (code, words) = told(&reading, &["publish", "other.topic", "1"]);
    assert_eq!(code, Some(1), "a standby cannot be written to: {words}");
    let (code, words) = told(&address(&[primary, standby], "&target_session_attrs=master"), &["status"]);
    assert_eq!(code, Some(78), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_client_is_told_of_a_promotion_and_misses_nothing_when_it_begins_at_a_time() {
    let pair = Pair::start(true).await;
    commands_find_the_right_server(&pair).await;
    let live = LiveBox::start_over(&pair.servers(RELAY_LOGIN));
    let mut client = live.connect().await;
    let since: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select now()").fetch_one(&pair.database.pool).await.unwrap();
    client.subscribe("a", &["a.*"], json!({})).await;
    pair.database.execute("select outbox.publish('a.b', to_jsonb(n)) from generate_series(1, 3) as n").await;
    assert_eq!(client.payloads(2).await, [1, 2]);
    let last = client.wait("event").await;
    assert_eq!(last["event"]["payload"], 3);
    let (database, standby) = pair.fail_over().await;
    assert_eq!(client.closed().await.map(|(code, _)| code), Some(1013));
    let mut back = live.connect().await;
    // The gateway cannot know what the standby lacks.
    let refused = json!({ "type": "subscribe", "id": "a", "topics": ["a.*"], "since": last["token"] });
    assert_eq!(back.refusal(refused).await, "other_database");
    back.subscribe("a", &["a.*"], json!({ "since": since.to_rfc3339() })).await;
    database.execute("select outbox.publish('a.b', '4')").await;
    assert_eq!(back.payloads(4).await, [1, 2, 3, 4]);
    live.stop().await;
    database.pool.close().await;
    blocking(|| drop(standby)).await;
}
