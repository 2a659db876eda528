//! The faults.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgoutbox::lab::private_postgres::{PrivatePostgres, Stop};
use rand::Rng as _;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

use super::world::{PERMITS, RELAYS, World};
use crate::support::{
    ledger::{Ended, Transaction, Written},
    pause,
    proxy::{End, Mode, When},
};

/// Their names, for the record.
pub(super) const FAULTS: [&str; 15] = [
    "relay killed",
    "relay killed, started later",
    "relay terminated",
    "relay frozen",
    "server stopped at once",
    "server killed",
    "connections ended by the server",
    "network silent",
    "network slow",
    "connections closed",
    "connections reset",
    "connection cut around COMMIT",
    "table locked",
    "transaction left open",
    "subscription changed",
];

/// The statements that are cut around COMMIT.
const CUT: [&str; 12] = [
    "advance_cursor",
    "claim_backlog",
    "claim_deliveries",
    "claim_keyed",
    "claim_ordered",
    "take_over_pages",
    "settle_pages",
    "settle_parts",
    "settle_delivered",
    "settle_retries",
    "acquire_order",
    "open_order",
];

const TABLES: [&str; 6] = ["deliveries", "pages", "backlog", "events", "order_leases", "cursor"];

impl World {
    pub(super) async fn strike(&mut self, kind: &'static str) {
        let at = self.rng.random_range(0..RELAYS);
        match kind {
            "relay killed" => self.kill(at, Duration::ZERO).await,
            "relay killed, started later" => {
                let later = self.between(500, 5_000);
                self.kill(at, later).await;
            }
            "relay terminated" => self.terminate(at).await,
            "relay frozen" => {
                let station = &mut self.stations[at];
                if station.thaws.is_none() {
                    station.relay.signal("STOP");
                    station.thaws = Some(Instant::now());
                }
                let length = self.between(500, 9_000);
                self.stations[at].thaws = Some(Instant::now() + length);
                self.books.fault(kind, PERMITS);
                if length > Duration::from_secs(6) {
                    self.watch_takeover(at).await;
                }
            }
            "server stopped at once" => self.restart_server(|server| server.stop(Stop::Immediate)).await,
            "server killed" => self.restart_server(PrivatePostgres::kill).await,
            "connections ended by the server" => {
                let most = self.rng.random_range(1..=8);
                let ended = format!(
                    "select count(pg_terminate_backend(pid)) from (select pid from pg_stat_activity \
                      where datname = current_database() and application_name like 'pgoutbox/%' \
                      order by random() limit {most}) as one"
                );
                self.database.count(ended).await;
            }
            "network silent" => {
                let length = self.between(500, 14_000);
                self.stations[at].proxy.set(&Mode::Blackhole);
                self.stations[at].heals = Some(Instant::now() + length);
                self.books.fault(kind, PERMITS);
            }
            "network slow" => {
                let (length, most) = (self.between(1_000, 5_000), self.between(20, 200));
                self.stations[at].proxy.set(&Mode::Delay(Duration::from_millis(5)..most));
                self.stations[at].heals = Some(Instant::now() + length);
                self.books.fault(kind, PERMITS);
            }
            "connections closed" | "connections reset" => {
                let how = if kind == "connections closed" { End::Fin } else { End::Reset };
                self.stations[at].proxy.end(how, false);
            }
            "connection cut around COMMIT" => {
                let statement = CUT[self.rng.random_range(0..CUT.len())];
                let when = [When::BeforeCommit, When::AfterCommit][self.rng.random_range(0..2)];
                eprintln!("  {statement} {when:?}");
                self.stations[at].proxy.arm(&format!("relay/{statement}"), when);
                self.books.fault(kind, PERMITS);
            }
            "table locked" => self.lock(),
            "transaction left open" => self.leave_open(),
            "subscription changed" => self.change().await,
            other => unreachable!("{other} is no fault"),
        }
    }

    fn between(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(least..most))
    }

    async fn kill(&mut self, at: usize, later: Duration) {
        self.stations[at].relay.kill().await;
        self.books.fault("kill", PERMITS);
        self.watch_takeover(at).await;
        pause(later).await;
        self.start_again(at).await;
    }

    async fn terminate(&mut self, at: usize) {
        let station = &mut self.stations[at];
        if station.thaws.take().is_some() {
            station.relay.signal("CONT");
        }
        station.relay.signal("TERM");
        let ended = station.relay.ended(Duration::from_secs(40)).await;
        assert!(matches!(ended, Some(0 | 75)), "exit {ended:?}: {:#?}", station.relay.log());
        if ended != Some(0) {
            self.books.fault("a drain that ran out of time", PERMITS);
        }
        self.start_again(at).await;
    }

    async fn start_again(&mut self, at: usize) {
        let proxy = self.stations[at].proxy.clone();
        proxy.set(&Mode::Forward);
        proxy.disarm();
        let (relay, name) = self.start_relay(&proxy).await;
        let station = &mut self.stations[at];
        (station.relay, station.name, station.thaws, station.heals) = (relay, name, None, None);
    }

    async fn restart_server(&mut self, end: impl FnOnce(&mut PrivatePostgres) + Send + 'static) {
        let down = self.between(0, 3_000);
        let mut server = self.server.take().unwrap();
        let (server, ended) = tokio::task::spawn_blocking(move || {
            end(&mut server);
            server
        })
        .await
        .map(|server| (server, Instant::now()))
        .unwrap();
        pause(down.saturating_sub(ended.elapsed())).await;
        let mut server = server;
        self.server = Some(
            tokio::task::spawn_blocking(move || {
                server.start_again().unwrap();
                server
            })
            .await
            .unwrap(),
        );
        self.books.fault("server", PERMITS * RELAYS);
        // What follows asks it.
        self.database.pool.close().await;
        self.database.pool = PgPool::connect_lazy_with(self.database.options.clone());
    }

    /// Measures how long what a relay holds stays with it.
    async fn watch_takeover(&mut self, at: usize) {
        let held: Result<Vec<i64>, _> = sqlx::query_scalar("select id from outbox.pages where relay = $1")
            .bind(&self.stations[at].name)
            .fetch_all(&self.database.pool)
            .await;
        let (held, began) = (held.unwrap_or_default(), Instant::now());
        let (name, slowest) = (self.stations[at].name.clone(), self.slowest.clone());
        let options = self.database.options.clone();
        self.beside.spawn(async move {
            let pool = PgPool::connect_lazy_with(options);
            while !held.is_empty() && began.elapsed() < Duration::from_secs(60) {
                let left: Result<i64, _> = sqlx::query_scalar(
                    "select count(*) from outbox.pages where id = any ($1) and relay = $2",
                )
                .bind(&held)
                .bind(&name)
                .fetch_one(&pool)
                .await;
                if left.is_ok_and(|left| left == 0) {
                    note(&slowest, began.elapsed());
                    break;
                }
                pause(Duration::from_millis(100)).await;
            }
            pool.close().await;
        });
    }

    fn lock(&mut self) {
        let (table, length) = (TABLES[self.rng.random_range(0..TABLES.len())], self.between(200, 6_000));
        self.books.fault("lock", PERMITS * RELAYS);
        let pool = self.database.pool.clone();
        self.beside.spawn(async move {
            let Ok(mut locking) = pool.begin().await else { return };
            let lock = format!("lock table outbox.{table} in access exclusive mode");
            if sqlx::query(AssertSqlSafe(lock)).execute(&mut *locking).await.is_ok() {
                pause(length).await;
            }
            locking.rollback().await.ok();
        });
    }

    /// An event of a transaction that commits late.
    fn leave_open(&mut self) {
        let length = self.between(1_000, 10_000);
        let id = Uuid::from_u128(self.rng.random());
        let (books, pool, seed) = (self.books.clone(), self.database.pool.clone(), self.seed);
        self.beside.spawn(async move {
            let Ok(mut open) = pool.begin().await else { return };
            let payload = "{\"k\": \"late\", \"n\": 1}".to_owned();
            let event = Written { id, topic: "torture.late".to_owned(), organization: None, payload };
            let written = sqlx::query(
                "insert into outbox.events (id, topic, payload) values ($1, $2, $3::text::jsonb)",
            )
            .bind(id)
            .bind(&event.topic)
            .bind(&event.payload)
            .execute(&mut *open)
            .await;
            pause(length).await;
            let committing = Instant::now();
            let ended = match (written, open.commit().await) {
                (Ok(_), Ok(())) => Ended::Committed,
                (Ok(_), Err(_)) => Ended::Unknown,
                (Err(_), _) => Ended::Aborted,
            };
            books.transaction(Transaction {
                seed,
                events: vec![event],
                synchronous: true,
                committing,
                ended,
            });
        });
    }

    /// What an operator does: pauses and resumes, edits, redrives.
    async fn change(&mut self) {
        let name = ["ordered", "narrow", "all", "fragile"][self.rng.random_range(0..4)];
        let pool = self.database.pool.clone();
        let run = async |sql: String| sqlx::query(AssertSqlSafe(sql)).execute(&pool).await.map(drop);
        let changed = match self.rng.random_range(0..3) {
            0 => {
                let paused = run(format!("select outbox.pause('{name}')")).await;
                pause(self.between(200, 2_000)).await;
                paused.and(run(format!("select outbox.resume('{name}')")).await)
            }
            1 => {
                let most = self.rng.random_range(2..20);
                run(format!("update outbox.subscriptions set max_in_flight = {most} where name = '{name}'"))
                    .await
            }
            _ => run("select outbox.redrive('fragile')".to_owned()).await,
        };
        if let Err(error) = changed {
            eprintln!("  {error}"); // a table may be locked, or the connection was ended with the server
        }
    }
}

fn note(slowest: &Arc<Mutex<Duration>>, took: Duration) {
    let mut slowest = slowest.lock().unwrap();
    *slowest = (*slowest).max(took);
}
