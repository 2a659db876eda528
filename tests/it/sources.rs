//! Several databases served by one process: `[[source]]`.

use std::{
    io::Write as _,
    net::SocketAddr,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use pgoutbox::lab::private_postgres::{LOGS_STATEMENTS, Options, PrivatePostgres};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Executor as _, postgres::PgConnectOptions};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::{
    gateway::free_address,
    support::{Books, ChildRelay, Database, Server, database::RELAY_LOGIN, pause},
    systemd::Manager,
};

/// A configuration file for several databases.
struct Sources {
    file: tempfile::NamedTempFile,
    address: SocketAddr,
}

impl Sources {
    /// `common`: settings for all. Each source: its name and address.
    fn new(common: &str, sources: &[(&str, String)]) -> Self {
        let address = free_address();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let http =
            format!("[http]\nlisten = '{address}'\n[egress]\nallow = ['127.0.0.1']\nallow_http = true\n");
        write!(file, "{common}\n{http}").unwrap();
        for (name, url) in sources {
            write!(file, "[[source]]\nname = '{name}'\n[source.database]\nurl = '{url}'\n").unwrap();
        }
        file.flush().unwrap();
        Self { file, address }
    }

    fn path(&self) -> &str {
        self.file.path().to_str().unwrap()
    }

    /// The process that serves them.
    fn run(&self, variables: &[(&str, &str)]) -> ChildRelay {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
        command.args(["run", "--config", self.path()]).env_clear();
        command.env("PGOUTBOX__TELEMETRY__FORMAT", "text").envs(variables.iter().copied());
        ChildRelay::of(command)
    }

    /// Runs a command with this configuration.
    fn command(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
        command.args(arguments).args(["--config", self.path()]).env_clear().stdin(Stdio::null());
        command.output().unwrap()
    }

    /// Status and body of a page.
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = reqwest::get(format!("http://{}{path}", self.address)).await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }
}

/// Ends a process with SIGTERM, in good order.
async fn terminate(mut process: ChildRelay) {
    process.signal("TERM");
    assert_eq!(process.ended(Duration::from_secs(30)).await, Some(0), "{:#?}", process.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_database_gets_its_deliveries_and_has_its_probe_metrics_and_api() {
    let (shop, billing) = (Database::new().await, Database::new().await);
    let books = Books::default();
    let (of_shop, of_billing) =
        (Server::open(&books, Duration::ZERO).await, Server::open(&books, Duration::ZERO).await);
    of_shop.subscribe(&shop, "mail", &["order"]).await;
    of_billing.subscribe(&billing, "invoices", &["order"]).await;
    let sources = Sources::new("", &[("shop", shop.relay_url()), ("billing", billing.relay_url())]);
    let process = sources.run(&[]);
    process.wait_for_logs("relay started", 2).await;
    for _ in 0..3 {
        books.publish(&shop.pool, "order").await;
    }
    for _ in 0..5 {
        books.publish(&billing.pool, "order").await;
    }
    of_shop.wait_knocked(3).await;
    of_billing.wait_knocked(5).await;
    for database in [&shop, &billing] {
        database.eventually("select not exists (select from outbox.owed)").await;
    }
    assert_eq!((of_shop.switch.requests(), of_billing.switch.requests()), (3, 5), "nothing is mixed up");

    let (_, metrics) = sources.get("/metrics").await;
    for line in ["routed_total{source=\"shop\"} 3", "routed_total{source=\"billing\"} 5"] {
        assert!(metrics.lines().any(|one| one == format!("pgoutbox_events_{line}")), "{line}: {metrics}");
    }
    assert_eq!(metrics.matches("# TYPE pgoutbox_events_routed ").count(), 1);
    let (_, own) = sources.get("/sources/shop/metrics").await;
    assert!(own.contains("source=\"shop\"") && !own.contains("billing"), "{own}");
    assert_eq!(sources.get("/readyz").await, (200, "ok\n".to_owned()));
    assert_eq!(sources.get("/sources/billing/readyz").await, (200, "ok\n".to_owned()));
    let (status, page) = sources.get("/sources/billing/v1/status").await;
    assert!(status == 200 && page.contains("invoices") && !page.contains("mail"), "{page}");
    let (status, page) = sources.get("/v1/status").await;
    assert!(status == 404 && page.contains("/sources/NAME/v1/"), "{page}");
    assert_eq!(sources.get("/sources/other/readyz").await.0, 404);
    let logged = process.log();
    assert!(logged.iter().any(|line| line.contains("source=billing") && line.contains("relay started")));

    let undecided = sources.command(&["dead-letters", "list"]);
    let said = String::from_utf8_lossy(&undecided.stderr).into_owned();
    assert_eq!(undecided.status.code(), Some(2), "{said}");
    assert!(said.contains("choose one with --source NAME: shop, billing"), "{said}");
    let listed = sources.command(&["subscriptions", "list", "--json", "--source", "billing"]);
    let printed = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(listed.status.success() && printed.contains("invoices"), "{listed:?}");
    let unknown = sources.command(&["status", "--source", "sales"]);
    assert_eq!(unknown.status.code(), Some(2), "{unknown:?}");
    assert!(sources.command(&["healthcheck"]).status.success());
    terminate(process).await;
    shop.drop().await;
    billing.drop().await;
}

/// Forwards connections to the server of the tests, from now on.
async fn open_door(address: SocketAddr, to: SocketAddr) -> JoinSet<()> {
    let listener = TcpListener::bind(address).await.unwrap();
    let mut door = JoinSet::new();
    door.spawn(async move {
        let mut passing = JoinSet::new();
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            passing.spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    door
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_away_at_the_start_is_served_when_it_comes_and_the_others_do_not_wait() {
    let (shop, billing) = (Database::new().await, Database::new().await);
    let books = Books::default();
    let server = Server::open(&books, Duration::ZERO).await;
    server.subscribe(&shop, "shop", &["order"]).await;
    server.subscribe(&billing, "billing", &["order"]).await;
    let door = free_address();
    let real = billing.relay_options.get_port();
    let url = billing.relay_url().replace(&format!(":{real}/"), &format!(":{}/", door.port()));
    assert!(url.contains(&door.port().to_string()), "{url}");
    let sources = Sources::new("", &[("shop", shop.relay_url()), ("billing", url)]);
    let manager = Manager::new();
    let process = sources.run(&[("NOTIFY_SOCKET", &manager.path)]);
    manager.told("READY=1").await;
    process.wait_for_log("the source cannot be served, trying again").await;
    books.publish(&billing.pool, "order").await;
    books.publish(&shop.pool, "order").await;
    books.wait_for(1, Duration::from_secs(10)).await;
    assert_eq!(books.journal().requests[0].subscription, "shop");
    assert_eq!(sources.get("/readyz").await.0, 200, "one works");
    let (status, why) = sources.get("/sources/billing/readyz").await;
    assert!(status == 503 && why.contains("not ready: "), "{why}");

    let opened = open_door(door, SocketAddr::from(([127, 0, 0, 1], real))).await;
    books.wait_for(2, Duration::from_secs(20)).await;
    assert_eq!(sources.get("/sources/billing/readyz").await.0, 200);
    // It goes away again.
    billing.eventually("select not exists (select from outbox.owed)").await;
    drop(opened);
    books.publish(&shop.pool, "order").await;
    books.wait_for(3, Duration::from_secs(10)).await;
    terminate(process).await;
    shop.drop().await;
    billing.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_slow_leaves_the_others_their_part_of_the_limit_for_all() {
    let (slow, quick) = (Database::new().await, Database::new().await);
    let books = Books::default();
    let of_slow = Server::open(&books, Duration::from_secs(4)).await;
    let of_quick = Server::open(&books, Duration::ZERO).await;
    of_slow.subscribe(&slow, "slow", &["order"]).await;
    of_quick.subscribe(&quick, "quick", &["order"]).await;
    let urls = [("slow", slow.relay_url()), ("quick", quick.relay_url())];
    let sources = Sources::new("[relay]\npermits = 4", &urls);
    let process = sources.run(&[]);
    process.wait_for_logs("relay started", 2).await;
    for _ in 0..20 {
        books.publish(&slow.pool, "order").await;
    }
    of_slow.wait_knocked(3).await;
    // Nothing of the slow one ends before 4 s.
    let began = Instant::now();
    for _ in 0..10 {
        books.publish(&quick.pool, "order").await;
    }
    of_quick.wait_knocked(10).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(of_slow.switch.requests(), 3, "four are for all, and one of them was kept for the other");

    // Its database stands still, too.
    let mut held = slow.connection().await;
    held.execute("begin; lock table outbox.cursor in access exclusive mode").await.unwrap();
    let began = Instant::now();
    for _ in 0..10 {
        books.publish(&quick.pool, "order").await;
    }
    of_quick.wait_knocked(20).await;
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(held);
    slow.eventually("select not exists (select from pg_locks where mode = 'AccessExclusiveLock')").await;
    terminate(process).await;
    slow.drop().await;
    quick.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_idle_databases_cost_each_less_than_a_query_a_second() {
    const DATABASES: usize = 20;
    const WINDOW: Duration = Duration::from_secs(10);
    let settings = [("max_connections", "400"), ("autovacuum", "off")];
    let settings = settings.into_iter().chain(LOGS_STATEMENTS);
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    let options = Options { settings, ..Options::default() };
    let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
    let first = Database::new_on(&server).await;
    first.pool.close().await;
    let root: PgConnectOptions = server.url("postgres").parse().unwrap();
    let mut root = root.connect().await.unwrap();
    let mut urls = Vec::new();
    for number in 0..DATABASES {
        let name = format!("shop_{number}");
        root.execute(AssertSqlSafe(format!("create database {name} template shop"))).await.unwrap();
        let options: PgConnectOptions = server.url(&name).parse().unwrap();
        urls.push((name, options.username(RELAY_LOGIN).to_url_lossy().to_string()));
    }
    let urls: Vec<(&str, String)> = urls.iter().map(|(name, url)| (name.as_str(), url.clone())).collect();
    let sources = Sources::new("[relay]\nlease = '3s'", &urls);
    let process = sources.run(&[]);
    process.wait_for_logs("listening for notifications", DATABASES).await;
    // A relay rests when nothing has happened for a while, and its first partitions are made.
    pause(Duration::from_secs(15)).await;
    process.wait_for_logs("partition made", 2 * DATABASES).await;
    let names: Vec<&str> = urls.iter().map(|(name, _)| *name).collect();
    let before = server.count_statements(&names);
    let mut windows = 0;
    let rates = loop {
        pause(WINDOW).await;
        windows += 1;
        let seconds = (WINDOW * windows).as_secs_f64();
        let after = server.count_statements(&names);
        let rates: Vec<f64> =
            before.iter().zip(&after).map(|(before, after)| (after - before) as f64 / seconds).collect();
        // What is done every minute or half a minute may fall into a window.
        if windows == 4 || rates.iter().all(|rate| *rate < 1.0) {
            break rates;
        }
    };
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    eprintln!("{mean:.2} queries a second of each database");
    assert!(mean > 0.1, "relays look at their databases: {rates:?}");
    assert!(rates.iter().all(|rate| *rate < 1.0), "{rates:?}");
    terminate(process).await;
}
