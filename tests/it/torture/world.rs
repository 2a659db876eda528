//! One round: a private PostgreSQL, relays as processes behind proxies, publishers, and the check at the end.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgoutbox::lab::{
    private_postgres::{Options, PrivatePostgres},
    receiver,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{faults::FAULTS, record::Balance};
use crate::support::{
    Books, ChildRelay, Database, Healing, Proxy, Server,
    ledger::{Ended, Transaction, Written},
    pause,
    proxy::Mode,
};

pub(super) const RELAYS: usize = 3;
pub(super) const PERMITS: usize = 16;
const PUBLISHERS: u64 = 4;
const KEYS_EACH: u64 = 5;

/// A relay and what stands between it and its database.
pub(super) struct Station {
    pub(super) relay: ChildRelay,
    pub(super) name: String,
    pub(super) proxy: Arc<Proxy>,
    /// It is frozen until then.
    pub(super) thaws: Option<Instant>,
    /// Its proxy forwards again then.
    pub(super) heals: Option<Instant>,
}

pub(super) struct World {
    pub(super) seed: u64,
    pub(super) rng: StdRng,
    pub(super) server: Option<PrivatePostgres>,
    pub(super) database: Database,
    pub(super) books: Books,
    pub(super) stations: Vec<Station>,
    pub(super) started: usize,
    /// What ends by itself: locks, open transactions, pauses.
    pub(super) beside: JoinSet<()>,
    pub(super) struck: BTreeMap<&'static str, usize>,
    pub(super) slowest: Arc<Mutex<Duration>>,
    publishers: JoinSet<()>,
    stop: CancellationToken,
    receiver: Server,
}

impl World {
    pub(super) async fn start(seed: u64) -> Self {
        let options = Options {
            settings: vec![("max_connections".to_owned(), "100".to_owned())],
            ..Options::default()
        };
        let server = tokio::task::spawn_blocking(|| PrivatePostgres::start(options).unwrap()).await.unwrap();
        let database = Database::new_on(&server).await;
        let books = Books::default();
        let receiving =
            receiver::Options { fail_rate: 0.03, delay: Duration::from_millis(4), ..Default::default() };
        let receiver = Server::open_with(&books, receiving).await;
        for name in ["ordered", "narrow", "all", "fragile"] {
            receiver.subscribe(&database, name, &["**"]).await;
        }
        let patient = r#"{"initial": "100ms", "multiplier": 1, "max_attempts": 1000}"#;
        database
            .execute(format!(
                "update outbox.subscriptions set retry = '{patient}' where name <> 'fragile'; \
                 update outbox.subscriptions set ordering = 'key' where name in ('ordered', 'narrow'); \
                 update outbox.subscriptions set max_in_flight = 3 where name = 'narrow'; \
                 update outbox.subscriptions set retry = '{{\"schedule\": [\"100ms\"]}}' \
                  where name = 'fragile'"
            ))
            .await;
        let mut world = Self {
            seed,
            rng: StdRng::seed_from_u64(seed),
            server: Some(server),
            database,
            books,
            stations: Vec::new(),
            started: 0,
            beside: JoinSet::new(),
            struck: BTreeMap::new(),
            slowest: Arc::default(),
            publishers: JoinSet::new(),
            stop: CancellationToken::new(),
            receiver,
        };
        for _ in 0..RELAYS {
            let port = world.server.as_ref().map_or(0, PrivatePostgres::port);
            let proxy = Arc::new(Proxy::start(port).await);
            let (relay, name) = world.start_relay(&proxy).await;
            world.stations.push(Station { relay, name, proxy, thaws: None, heals: None });
        }
        for number in 0..PUBLISHERS {
            let (books, options, stop) =
                (world.books.clone(), world.database.options.clone(), world.stop.clone());
            world.publishers.spawn(publish(books, options, seed, number, stop));
        }
        world
    }

    /// Starts a relay behind this proxy.
    pub(super) async fn start_relay(&mut self, proxy: &Proxy) -> (ChildRelay, String) {
        use sqlx::ConnectOptions as _;
        self.started += 1;
        let name = format!("relay-{}", self.started);
        let url = proxy.options(&self.database.relay_options).to_url_lossy().to_string();
        let permits = PERMITS.to_string();
        let settings = [
            ("DATABASE_URL", url.as_str()),
            ("PGOUTBOX__RELAY__PERMITS", &permits),
            ("PGOUTBOX__RELAY__LEASE", "4s"),
            ("PGOUTBOX__RELAY__POLL", "500ms"),
            ("PGOUTBOX__RELAY__DRAIN", "3s"),
            ("PGOUTBOX__RELAY__ATTEMPT_LOG", "failures"),
        ];
        (ChildRelay::start(&self.database, &name, &settings).await, name)
    }

    /// One fault after the other for so long.
    pub(super) async fn torture(&mut self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until {
            let wait = Duration::from_millis(self.rng.random_range(1_000..3_000));
            pause(wait).await;
            self.look(false);
            while self.beside.try_join_next().is_some_and(|ended| ended.is_ok()) {}
            let kind = FAULTS[self.rng.random_range(0..FAULTS.len())];
            eprintln!("{:?} left: {kind}", until.saturating_duration_since(Instant::now()));
            *self.struck.entry(kind).or_default() += 1;
            self.strike(kind).await;
        }
    }

    /// Ends what is over, or everything.
    pub(super) fn look(&mut self, everything: bool) {
        let is_over = |until: Option<Instant>| until.is_some_and(|then| everything || then <= Instant::now());
        for station in &mut self.stations {
            if is_over(station.thaws) {
                station.relay.signal("CONT");
                station.thaws = None;
            }
            if is_over(station.heals) {
                station.proxy.set(&Mode::Forward);
                station.heals = None;
            }
            if everything {
                station.proxy.disarm();
            }
        }
    }

    /// Heals, drains, and compares what was published with what came.
    pub(super) async fn end(mut self) -> Balance {
        self.look(true);
        while let Some(ended) = self.beside.join_next().await {
            ended.unwrap();
        }
        let resume =
            "update outbox.subscriptions set active = true, resumed_at = clock_timestamp() where not active";
        self.database.execute(resume).await;
        self.stop.cancel();
        while let Some(ended) = self.publishers.join_next().await {
            ended.unwrap();
        }
        let mut violated = Vec::new();
        let mut healing = Healing::begin();
        let mut looks = tokio::time::interval(Duration::from_millis(500));
        let left = "select (select count(*) from outbox.owed) + (select unrouted from outbox.log_status)";
        loop {
            let left = usize::try_from(self.database.count(left).await).unwrap();
            if left == 0 {
                break;
            }
            if !healing.goes_on(left) {
                violated.push(format!("stuck: {healing:?} {}", self.database.rows_at_hand().await));
                break;
            }
            looks.tick().await;
        }
        eprintln!("{healing:?}");
        for station in &mut self.stations {
            station.relay.signal("TERM");
            let ended = station.relay.ended(Duration::from_secs(30)).await;
            if ended != Some(0) {
                violated.push(format!("exit {ended:?} of {}: {:#?}", station.name, tail(&station.relay)));
            }
        }
        let findings = self.books.check(&self.database).await;
        for term in findings.violated() {
            violated.push(format!("{term}: {findings:?}"));
        }
        let out_of_order = self.out_of_order().await;
        if !out_of_order.is_empty() {
            violated.push(format!("out of order: {:?}", out_of_order.iter().take(5).collect::<Vec<_>>()));
        }
        if !violated.is_empty() {
            self.explain(&findings.lost, &out_of_order);
        }
        let takeover = *self.slowest.lock().unwrap();
        let balance = Balance {
            faults: self.struck,
            events: findings.durable,
            owed: findings.owed,
            lost: findings.lost.len(),
            phantom: findings.phantom.len(),
            duplicates: findings.duplicates(),
            duplicates_allowed: findings.duplicates_allowed,
            out_of_order: out_of_order.len(),
            takeover,
            standstill: healing.standstill,
            violated,
        };
        self.database.pool.close().await;
        drop(self.receiver);
        tokio::task::spawn_blocking(move || drop(self.server)).await.unwrap();
        balance
    }

    /// First effects of a key that came after that of a later event.
    async fn out_of_order(&self) -> Vec<String> {
        let order: Vec<(Uuid, String, i64)> =
            sqlx::query_as("select id, key, position from outbox.events where key is not null")
                .fetch_all(&self.database.pool)
                .await
                .unwrap();
        let of: BTreeMap<Uuid, (String, i64)> =
            order.into_iter().map(|(id, key, position)| (id, (key, position))).collect();
        let mut newest: BTreeMap<(String, String), i64> = BTreeMap::new();
        let mut seen: BTreeSet<(String, Uuid)> = BTreeSet::new();
        let mut found = Vec::new();
        for request in self.books.journal().requests {
            if !request.took_effect
                || !["ordered", "narrow"].contains(&request.subscription.as_str())
                || !seen.insert((request.subscription.clone(), request.event))
            {
                continue;
            }
            let Some((key, position)) = of.get(&request.event) else { continue };
            let newest = newest.entry((request.subscription.clone(), key.clone())).or_insert(0);
            if position < newest {
                found.push(format!("{} key {key}: {position} after {newest}", request.subscription));
            }
            *newest = (*newest).max(*position);
        }
        found
    }

    /// Prints what helps to find a defect.
    fn explain(&self, lost: &BTreeSet<(Uuid, String)>, out_of_order: &[String]) {
        eprintln!("seed {}: lost {lost:?}; out of order {out_of_order:?}", self.seed);
        for station in &self.stations {
            eprintln!("{}: {:#?}", station.name, tail(&station.relay));
        }
    }
}

fn tail(relay: &ChildRelay) -> Vec<String> {
    let log = relay.log();
    log.iter().rev().take(60).rev().cloned().collect()
}

/// Writes events of keys of its own, each transaction after the end of the one before.
async fn publish(
    books: Books,
    options: sqlx::postgres::PgConnectOptions,
    seed: u64,
    number: u64,
    stop: CancellationToken,
) {
    use sqlx::ConnectOptions as _;
    let mut rng = StdRng::seed_from_u64(seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let (mut connection, mut written): (Option<PgConnection>, u64) = (None, 0);
    while !stop.is_cancelled() {
        pause(Duration::from_millis(rng.random_range(0..100))).await;
        let Some(open) = connection.as_mut() else {
            connection = options.connect().await.ok();
            continue;
        };
        let events: Vec<(String, Written)> = (0..rng.random_range(1..=4))
            .map(|_| {
                written += 1;
                let key = format!("{number}-{}", rng.random_range(0..KEYS_EACH));
                let payload = format!("{{\"k\": \"{key}\", \"n\": {written}}}");
                let topic = ["torture.one", "torture.two"][rng.random_range(0..2)].to_owned();
                (key, Written { id: Uuid::from_u128(rng.random()), topic, organization: None, payload })
            })
            .collect();
        let commits = rng.random_bool(0.9);
        let (committing, ended) = transaction(open, &events, commits).await;
        if ended.1 {
            connection = None;
        }
        let events = events.into_iter().map(|(_, event)| event).collect();
        books.transaction(Transaction { seed, events, synchronous: true, committing, ended: ended.0 });
    }
    if let Some(open) = connection {
        open.close().await.ok();
    }
}

/// Returns also whether the connection failed.
async fn transaction(
    connection: &mut PgConnection,
    events: &[(String, Written)],
    commits: bool,
) -> (Instant, (Ended, bool)) {
    let writing = async {
        connection.execute("begin").await?;
        for (key, event) in events {
            sqlx::query(
                "insert into outbox.events (id, topic, key, payload) values ($1, $2, $3, $4::text::jsonb)",
            )
            .bind(event.id)
            .bind(&event.topic)
            .bind(key)
            .bind(&event.payload)
            .execute(&mut *connection)
            .await?;
        }
        Ok::<_, sqlx::Error>(())
    };
    if writing.await.is_err() {
        return (Instant::now(), (Ended::Aborted, true));
    }
    let committing = Instant::now();
    let ended = match (commits, connection.execute(if commits { "commit" } else { "rollback" }).await) {
        (false, ended) => (Ended::Aborted, ended.is_err()),
        (true, Ok(_)) => (Ended::Committed, false),
        (true, Err(_)) => (Ended::Unknown, true),
    };
    (committing, ended)
}
