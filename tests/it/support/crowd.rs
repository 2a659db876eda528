//! Publishers that do random things an application may do in transactions, and record them.

use std::time::{Duration, Instant};

use pgoutbox::Servers;
use rand::{Rng, SeedableRng, rngs::StdRng};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection, Executor, PgConnection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Database,
    books::{Books, pause},
    ledger::{Ended, Transaction, Written},
};

const TOPICS: [&str; 6] = [
    "shop.orders.create",
    "shop.orders.cancel",
    "shop.users.create",
    "bank.transfers.create",
    "bank.transfers.book",
    "alone",
];

/// Behaviour of publishers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Habits {
    pub(crate) publishers: u64,
    /// Whether every second transaction commits asynchronously.
    pub(crate) hurried: bool,
    /// Time for which some transactions stay open; zero for none.
    pub(crate) long: Duration,
    /// Whether some transactions use two-phase commit.
    pub(crate) prepares: bool,
    /// Longest pause between transactions.
    pub(crate) rests: Duration,
    /// Whether the database may be unreachable.
    pub(crate) patient: bool,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            publishers: 8,
            hurried: false,
            long: Duration::from_secs(3),
            prepares: true,
            rests: Duration::from_millis(30),
            patient: false,
        }
    }
}

/// A random seed, printed, or the one in `PGOUTBOX_TEST_SEED`.
pub(crate) fn seed() -> u64 {
    let given = std::env::var_os("PGOUTBOX_TEST_SEED").and_then(|text| text.to_str()?.parse().ok());
    let seed = given.unwrap_or_else(rand::random::<u64>);
    eprintln!("PGOUTBOX_TEST_SEED={seed}");
    seed
}

/// Running publishers.
#[derive(Debug)]
pub(crate) struct Crowd {
    publishers: JoinSet<()>,
    stop: CancellationToken,
}

impl Crowd {
    pub(crate) fn start(database: &Database, books: &Books, seed: u64, habits: Habits) -> Self {
        Self::start_on(&database.options.clone().into(), books, seed, habits)
    }

    /// Publishers that connect to the right one of these servers.
    pub(crate) fn start_on(servers: &Servers, books: &Books, seed: u64, habits: Habits) -> Self {
        let stop = CancellationToken::new();
        let mut publishers = JoinSet::new();
        for number in 0..habits.publishers {
            let seed = seed.wrapping_add(number);
            let publisher = Publisher {
                books: books.clone(),
                servers: servers.clone(),
                rng: StdRng::seed_from_u64(seed),
                seed,
                habits,
                synchronous: !habits.hurried || number % 2 == 0,
                own: Vec::new(),
            };
            publishers.spawn(publisher.work(stop.clone()));
        }
        Self { publishers, stop }
    }

    /// Stops the publishers after their current transactions.
    pub(crate) async fn stop(mut self) {
        self.stop.cancel();
        let all = async {
            while let Some(ended) = self.publishers.join_next().await {
                ended.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all).await.expect("publishers finish within 30 s");
    }
}

struct Publisher {
    books: Books,
    servers: Servers,
    rng: StdRng,
    seed: u64,
    habits: Habits,
    synchronous: bool,
    /// Events published with given ids before.
    own: Vec<Written>,
}

/// The events that a transaction will commit.
#[derive(Default)]
struct Plan {
    kept: Vec<Written>,
    undone: Vec<Written>,
}

impl Publisher {
    async fn work(mut self, stop: CancellationToken) {
        let mut connection: Option<PgConnection> = None;
        while !stop.is_cancelled() {
            let mut open = match connection.take() {
                Some(open) => open,
                None => match self.connect().await {
                    Ok(open) => open,
                    Err(error) => {
                        assert!(self.habits.patient, "{error}");
                        pause(Duration::from_millis(50)).await;
                        continue;
                    }
                },
            };
            match self.transaction(&mut open).await {
                Ok(()) => connection = Some(open),
                Err(error) => assert!(self.habits.patient, "seed {}: {error}", self.seed),
            }
            let rest = self.habits.rests.mul_f64(self.rng.random::<f64>());
            pause(rest).await;
        }
        if let Some(open) = connection {
            open.close().await.ok();
        }
    }

    async fn connect(&self) -> Result<PgConnection, sqlx::Error> {
        self.servers.find(false).await?.connect().await
    }

    async fn transaction(&mut self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut plan = Plan::default();
        let prepares = self.habits.prepares && self.rng.random_bool(0.06);
        let written = self.write(connection, &mut plan, prepares).await;
        let chance = self.rng.random_range(0..100);
        let committing = Instant::now();
        let result = match written {
            // No commit was sent.
            Err(error) => (Ended::Aborted, Err(error)),
            Ok(()) if prepares => self.end_prepared(connection, chance >= 30).await,
            Ok(()) if chance < 12 => (Ended::Aborted, connection.execute("rollback").await.map(|_| ())),
            Ok(()) => match connection.execute("commit").await {
                Ok(_) => (Ended::Committed, Ok(())),
                Err(error) => (Ended::Unknown, Err(error)),
            },
        };
        let (ended, result) = result;
        let record = |events, ended| Transaction {
            seed: self.seed,
            events,
            synchronous: self.synchronous,
            committing,
            ended,
        };
        self.books.transaction(record(plan.kept, ended));
        self.books.transaction(record(plan.undone, Ended::Aborted));
        result
    }

    async fn write(
        &mut self,
        connection: &mut PgConnection,
        plan: &mut Plan,
        prepares: bool,
    ) -> Result<(), sqlx::Error> {
        connection.execute("begin").await?;
        if prepares {
            connection.execute("set local outbox.doorbell = 'off'").await?;
        }
        if !self.synchronous {
            connection.execute("set local synchronous_commit = off").await?;
        }
        for _ in 0..self.rng.random_range(1..=3) {
            if self.rng.random_bool(0.3) {
                connection.execute("savepoint here").await?;
                let inner = self.statement(connection).await?;
                if self.rng.random_bool(0.5) {
                    connection.execute("rollback to savepoint here").await?;
                    // An id that existed before stays.
                    plan.undone.extend(inner.into_iter().filter(|event| !self.own.contains(event)));
                } else {
                    connection.execute("release savepoint here").await?;
                    plan.kept.extend(inner);
                }
            } else {
                plan.kept.extend(self.statement(connection).await?);
            }
        }
        if !self.habits.long.is_zero() && self.rng.random_bool(0.01) {
            pause(self.habits.long.mul_f64(self.rng.random_range(0.3..1.0))).await;
        }
        Ok(())
    }

    async fn end_prepared(
        &mut self,
        connection: &mut PgConnection,
        commits: bool,
    ) -> (Ended, Result<(), sqlx::Error>) {
        let name = Uuid::from_u128(self.rng.random()).simple().to_string();
        if let Err(error) = connection.execute(AssertSqlSafe(format!("prepare transaction '{name}'"))).await {
            return (Ended::Unknown, Err(error));
        }
        pause(Duration::from_millis(self.rng.random_range(0..400))).await;
        let (verb, ended) = if commits { ("commit", Ended::Committed) } else { ("rollback", Ended::Aborted) };
        match connection.execute(AssertSqlSafe(format!("{verb} prepared '{name}'"))).await {
            Ok(_) => (ended, Ok(())),
            Err(error) => (Ended::Unknown, Err(error)),
        }
    }

    /// Runs a random statement that writes events.
    async fn statement(&mut self, connection: &mut PgConnection) -> Result<Vec<Written>, sqlx::Error> {
        match self.rng.random_range(0..10) {
            0..4 => self.insert(connection, 1).await,
            4..6 => {
                let count = self.rng.random_range(2..=20);
                self.insert(connection, count).await
            }
            6..8 => self.copy(connection).await,
            _ => self.publish_twice(connection).await,
        }
    }

    async fn insert(
        &mut self,
        connection: &mut PgConnection,
        count: usize,
    ) -> Result<Vec<Written>, sqlx::Error> {
        let events = self.events(count);
        sqlx::query(
            "insert into outbox.events (id, topic, organization, payload) \
             select id, topic, organization, payload::jsonb \
                 from unnest($1::uuid[], $2::text[], $3::text[], $4::text[]) \
             as new (id, topic, organization, payload)",
        )
        .bind(events.iter().map(|event| event.id).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.topic.clone()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.organization.clone()).collect::<Vec<_>>())
        .bind(events.iter().map(|event| event.payload.clone()).collect::<Vec<_>>())
        .execute(connection)
        .await?;
        Ok(events)
    }

    async fn copy(&mut self, connection: &mut PgConnection) -> Result<Vec<Written>, sqlx::Error> {
        let count = self.rng.random_range(1..=30);
        let events = self.events(count);
        let lines: String = events
            .iter()
            .map(|Written { id, topic, organization, payload }| {
                format!("{id}\t{topic}\t{}\t{payload}\n", organization.as_deref().unwrap_or("\\N"))
            })
            .collect();
        let mut copy = connection
            .copy_in_raw("copy outbox.events (id, topic, organization, payload) from stdin")
            .await?;
        copy.send(lines.into_bytes()).await?;
        copy.finish().await?;
        Ok(events)
    }

    /// Publishes an event twice with the same id: a new one, or one of an earlier transaction.
    async fn publish_twice(&mut self, connection: &mut PgConnection) -> Result<Vec<Written>, sqlx::Error> {
        let again = self
            .own
            .len()
            .checked_sub(1)
            .filter(|_| self.rng.random_bool(0.3))
            .map(|last| self.own[last].clone());
        let event = match again {
            Some(event) => event,
            None => self.events(1).remove(0),
        };
        for _ in 0..2 {
            sqlx::query("select outbox.publish($1, $2::text::jsonb, organization => $3, id => $4)")
                .bind(&event.topic)
                .bind(&event.payload)
                .bind(&event.organization)
                .bind(event.id)
                .execute(&mut *connection)
                .await?;
        }
        Ok(vec![event])
    }

    fn events(&mut self, count: usize) -> Vec<Written> {
        (0..count)
            .map(|_| {
                let organization =
                    [None, Some("acme"), Some("globex"), Some("initech")][self.rng.random_range(0..4)];
                let payload = if self.rng.random_bool(0.02) {
                    // Large payloads are read separately.
                    let text: String =
                        (0..1_500).map(|_| format!("{:016x}", self.rng.random::<u64>())).collect();
                    format!("{{\"n\": \"{text}\"}}")
                } else {
                    format!("{{\"n\": {}}}", self.rng.random::<u32>())
                };
                Written {
                    id: Uuid::from_u128(self.rng.random()),
                    topic: TOPICS[self.rng.random_range(0..TOPICS.len())].to_owned(),
                    organization: organization.map(str::to_owned),
                    payload,
                }
            })
            .collect()
    }
}
