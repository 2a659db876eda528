//! What is done, step by step: each is drawn from a seed, done, and written into the history.

mod relays;

use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{
    model::{Change, Event, History, Report, Spec, Subscription, Version},
    receiver::{Mode, Receiver},
};
use crate::support::{Database, RelayBox, pause};

const PERMITS: u32 = 16;
const NAMES: [&str; 7] = ["shop", "bank", "mail", "search", "audit", "stock", "tax"];
/// Subscriptions at once.
const SUBSCRIPTIONS: usize = 4;
/// Steps after which everything is settled and what is owed is compared: later edits make less of it certain.
const STEPS: usize = 40;

/// One database with its relays, receiver and history.
pub(super) struct World {
    seed: u64,
    random: StdRng,
    database: Database,
    receiver: Receiver,
    history: History,
    relays: Vec<RelayBox>,
    started: usize,
    /// Transactions that commit or roll back later, and their events.
    open: Vec<(PgConnection, Vec<usize>)>,
    paths: u32,
    events: i64,
}

impl World {
    pub(super) async fn new(seed: u64) -> Self {
        let (database, receiver) = (Database::new().await, Receiver::start().await);
        let history = History { silences: vec![(Instant::now(), None)], ..History::default() };
        let random = StdRng::seed_from_u64(seed);
        let (relays, open) = (Vec::new(), Vec::new());
        Self { seed, random, database, receiver, history, relays, started: 0, open, paths: 0, events: 0 }
    }

    /// Does so many steps, lets everything settle, and returns what should not be.
    pub(super) async fn round(mut self, steps: usize) -> Vec<String> {
        let began = Instant::now();
        self.start_relay().await;
        for _ in 0..2 {
            self.subscribe().await;
        }
        let (mut report, mut settling) = (Report::default(), Duration::ZERO);
        let mut owed = 0;
        for step in 1..=steps {
            self.step().await;
            pause(Duration::from_millis(self.random.random_range(0..60))).await;
            if step % STEPS == 0 {
                let settles = Instant::now();
                report.findings.extend(self.settle().await);
                settling += settles.elapsed();
                self.history.owed(&self.receiver.requests(), &mut report);
                owed += report.owed;
            }
        }
        let requests = self.receiver.requests();
        self.history.check(&requests, PERMITS as usize, &mut report);
        eprintln!(
            "seed {}: {steps} steps, {} events, {} subscriptions in {} versions, {} owed, {} requests, \
             {} copies of {} kills, latest under an old version after {:.0?}, {} findings, \
             {:.0?}, of which {:.0?} to settle",
            self.seed,
            self.history.events.iter().filter(|event| event.committed.is_some()).count(),
            self.history.subscriptions.len(),
            self.history.subscriptions.iter().map(|one| one.versions.len()).sum::<usize>(),
            owed,
            requests.len(),
            report.copies,
            self.history.kills.len(),
            report.latest,
            report.findings.len(),
            began.elapsed(),
            settling,
        );
        for relay in self.relays.drain(..) {
            relay.stop().await;
        }
        self.database.drop().await;
        report.findings
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..36 => self.publish().await,
            36..42 => self.end_transaction().await,
            42..50 => self.subscribe().await,
            50..61 => self.edit().await,
            61..65 => self.pause().await,
            65..76 => self.resume().await,
            76..84 => self.change_mode(),
            84..88 => self.redrive().await,
            88..90 => self.discard().await,
            90..93 => self.rename().await,
            93..94 => self.unsubscribe().await,
            94..97 => self.start_relay().await,
            _ => self.end_relay().await,
        }
    }

    /// One of the subscriptions that exist.
    fn any(&mut self) -> Option<usize> {
        let alive = |number: &usize| self.history.subscriptions[*number].is_alive();
        let alive: Vec<usize> = (0..self.history.subscriptions.len()).filter(alive).collect();
        alive.choose(&mut self.random).copied()
    }

    async fn publish(&mut self) {
        let mut connection = self.database.connection().await;
        connection.execute("begin").await.unwrap();
        let first = self.history.events.len();
        for _ in 0..[1, 3, 10, 40][self.random.random_range(0..4)] {
            self.events += 1;
            let delay = self.random.random_bool(0.1).then(|| self.random.random_range(100..2_000));
            let delay = delay.map(Duration::from_millis);
            let event = Event {
                id: Uuid::from_u128(self.random.random()),
                topic: ["a.x", "a.y", "b.x", "b.y"][self.random.random_range(0..4)],
                organization: [None, Some("acme"), Some("globex")][self.random.random_range(0..3)],
                key: [None, Some("k1"), Some("k2"), Some("j1")][self.random.random_range(0..4)],
                number: self.events,
                kind: ["red", "blue"][self.random.random_range(0..2)],
                after: delay.map(|delay| Instant::now() + delay),
                committed: None,
            };
            sqlx::query(
                "select outbox.publish($1, $2, $3, organization => $4, id => $5, \
                        deliver_after => clock_timestamp() + $6 * interval '1 ms')",
            )
            .bind(event.topic)
            .bind(json!({"n": event.number, "kind": event.kind}))
            .bind(event.key)
            .bind(event.organization)
            .bind(event.id)
            .bind(delay.map(|delay| delay.as_secs_f64() * 1_000.0))
            .execute(&mut connection)
            .await
            .unwrap();
            self.history.events.push(event);
        }
        self.open.push((connection, (first..self.history.events.len()).collect()));
        if self.open.len() > 3 || self.random.random_bool(0.7) {
            self.end_transaction().await;
        }
    }

    async fn end_transaction(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let number = self.random.random_range(0..self.open.len());
        let (mut connection, events) = self.open.swap_remove(number);
        if self.random.random_bool(0.15) {
            connection.execute("rollback").await.unwrap();
        } else {
            let committing = Instant::now();
            connection.execute("commit").await.unwrap();
            let committed = Some((committing, Instant::now()));
            for event in events {
                self.history.events[event].committed = committed;
            }
        }
        connection.close().await.unwrap();
    }

    fn spec(&mut self) -> Spec {
        let random = &mut self.random;
        Spec {
            topics: [vec!["**"], vec!["a.*"], vec!["*.x"], vec!["b.y", "a.x"]][random.random_range(0..4)]
                .clone(),
            organization: [None, None, Some("acme"), Some("globex")][random.random_range(0..4)],
            keys: [None, None, None, Some(vec!["k"]), Some(vec!["j", "k2"])][random.random_range(0..5)]
                .clone(),
            filter: [None, None, Some("payload.n % 2 == 0"), Some("payload.n % 3 != 0")]
                [random.random_range(0..4)],
            matched: [None, None, None, Some("red")][random.random_range(0..4)],
            secret: [None, None, Some("env:PGOUTBOX_SECRET_A"), Some("env:PGOUTBOX_SECRET_UNSET")]
                [random.random_range(0..4)],
            schedule: [vec!["100ms"], vec!["100ms", "300ms"], vec!["50ms", "100ms", "500ms"]]
                [random.random_range(0..3)]
            .clone(),
            max_in_flight: [None, None, Some(1), Some(4)][random.random_range(0..4)],
            batch: [None, None, Some(3), Some(20)][random.random_range(0..4)],
            timeout: ["5s", "6s"][random.random_range(0..2)],
        }
    }

    /// A spec that differs in one field, or in all.
    fn changed(&mut self, old: &Spec) -> Spec {
        let (mut spec, new) = (old.clone(), self.spec());
        match self.random.random_range(0..12) {
            0 => spec.topics = new.topics,
            1 | 2 => spec.organization = new.organization,
            3 => spec.keys = new.keys,
            4 => spec.filter = new.filter,
            5 => spec.matched = new.matched,
            6 | 7 => spec.secret = new.secret,
            8 => spec.schedule = new.schedule,
            9 => spec.max_in_flight = new.max_in_flight,
            10 => spec.batch = new.batch,
            _ => spec = new,
        }
        spec
    }

    async fn subscribe(&mut self) {
        let alive: Vec<&str> = self
            .history
            .subscriptions
            .iter()
            .filter(|one| one.is_alive())
            .map(|one| one.name.as_str())
            .collect();
        if alive.len() >= SUBSCRIPTIONS {
            return;
        }
        let free: Vec<&str> = NAMES.into_iter().filter(|name| !alive.contains(name)).collect();
        let name = free.choose(&mut self.random).unwrap().to_string();
        let mut spec = self.spec();
        spec.secret = spec.secret.filter(|_| spec.is_valid());
        let from_beginning = self.random.random_bool(0.2);
        self.paths += 1;
        let path = self.paths;
        let mut connection = self.database.connection().await;
        let begun = Instant::now();
        let start = if from_beginning { "beginning" } else { "now" };
        let id = save(&mut connection, &name, &spec, &self.receiver.url(path), start).await;
        let made = (begun, Instant::now());
        let (versions, pauses) = (vec![Version { path, spec, made, ended: None }], Vec::new());
        let (changes, discarded) = (Vec::new(), std::collections::HashMap::new());
        let one =
            Subscription { id, name, from_beginning, versions, pauses, changes, redrives: 0, discarded };
        self.history.subscriptions.push(one);
        connection.close().await.unwrap();
    }

    async fn edit(&mut self) {
        let Some(number) = self.any() else { return };
        let old = self.history.subscriptions[number].now();
        let (mut path, old) = (old.path, old.spec.clone());
        let spec = self.changed(&old);
        if self.random.random_bool(0.7) {
            self.paths += 1;
            path = self.paths;
        }
        self.change(number, path, spec, None).await;
    }

    async fn rename(&mut self) {
        let Some(number) = self.any() else { return };
        let taken =
            |name: &&str| self.history.subscriptions.iter().any(|one| one.is_alive() && one.name == *name);
        let free: Vec<&str> = NAMES.into_iter().filter(|name| !taken(name)).collect();
        let name = free.choose(&mut self.random).unwrap().to_string();
        let (path, spec) = (
            self.history.subscriptions[number].now().path,
            self.history.subscriptions[number].now().spec.clone(),
        );
        self.change(number, path, spec, Some(name)).await;
    }

    /// Makes a new version of a subscription.
    async fn change(&mut self, number: usize, path: u32, spec: Spec, name: Option<String>) {
        let url = self.receiver.url(path);
        let one = &mut self.history.subscriptions[number];
        let mut connection = self.database.connection().await;
        let begun = Instant::now();
        connection.execute("begin").await.unwrap();
        let before = state(&mut connection, one.id).await;
        if let Some(name) = name {
            sqlx::query("update outbox.subscriptions set name = $1 where id = $2")
                .bind(&name)
                .bind(one.id)
                .execute(&mut connection)
                .await
                .unwrap();
            one.name = name;
        } else {
            let id = save(&mut connection, &one.name, &spec, &url, "now").await;
            assert_eq!(id, one.id);
        }
        let after = state(&mut connection, one.id).await;
        connection.execute("commit").await.unwrap();
        let made = (begun, Instant::now());
        one.changes.push(change(made, &before, &after));
        one.versions.last_mut().unwrap().ended = Some(made);
        one.versions.push(Version { path, spec, made, ended: None });
        connection.close().await.unwrap();
    }

    async fn pause(&mut self) {
        let Some(number) = self.any() else { return };
        let one = &mut self.history.subscriptions[number];
        if !one.is_paused() {
            self.database.execute(format!("select outbox.pause('{}')", one.name)).await;
            one.pauses.push((Instant::now(), None));
        }
    }

    async fn resume(&mut self) {
        let Some(number) = self.any() else { return };
        if self.random.random_bool(0.7) {
            self.receiver.set(self.history.subscriptions[number].now().path, Mode::Good);
        }
        self.resume_one(number).await;
    }

    async fn resume_one(&mut self, number: usize) {
        let one = &mut self.history.subscriptions[number];
        let mut connection = self.database.connection().await;
        let begun = Instant::now();
        connection.execute("begin").await.unwrap();
        let before = state(&mut connection, one.id).await;
        sqlx::query("select outbox.resume($1)").bind(&one.name).execute(&mut connection).await.unwrap();
        let after = state(&mut connection, one.id).await;
        connection.execute("commit").await.unwrap();
        one.changes.push(change((begun, Instant::now()), &before, &after));
        if let Some((_, until @ None)) = one.pauses.last_mut() {
            *until = Some(begun);
        }
        connection.close().await.unwrap();
    }

    fn change_mode(&mut self) {
        let Some(number) = self.any() else { return };
        let modes = [Mode::Good, Mode::Good, Mode::Slow, Mode::Failing, Mode::Busy, Mode::Gone];
        let mode = modes[self.random.random_range(0..modes.len())];
        self.receiver.set(self.history.subscriptions[number].now().path, mode);
    }

    async fn redrive(&mut self) {
        let Some(number) = self.any() else { return };
        self.redrive_one(number).await;
    }

    async fn redrive_one(&mut self, number: usize) {
        let one = &mut self.history.subscriptions[number];
        one.redrives += 1;
        self.database.execute(format!("select outbox.redrive('{}')", one.name)).await;
    }

    async fn discard(&mut self) {
        let Some(number) = self.any() else { return };
        let one = &mut self.history.subscriptions[number];
        let mut connection = self.database.connection().await;
        connection.execute("begin isolation level repeatable read").await.unwrap();
        // Also those of an earlier subscription with this name.
        let dead: Vec<(Uuid, i64)> =
            sqlx::query_as("select event_id, subscription_id from outbox.matching_dead_letters($1)")
                .bind(&one.name)
                .fetch_all(&mut connection)
                .await
                .unwrap();
        let discarded: i64 = sqlx::query_scalar("select outbox.discard($1)")
            .bind(&one.name)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        connection.execute("commit").await.unwrap();
        assert_eq!(discarded, dead.len() as i64);
        let own = dead.into_iter().filter(|(_, id)| *id == one.id);
        one.discarded.extend(own.map(|(event, _)| (event, Instant::now())));
        connection.close().await.unwrap();
    }

    async fn unsubscribe(&mut self) {
        let Some(number) = self.any() else { return };
        let one = &mut self.history.subscriptions[number];
        let begun = Instant::now();
        self.database.execute(format!("select outbox.unsubscribe('{}')", one.name)).await;
        one.versions.last_mut().unwrap().ended = Some((begun, Instant::now()));
    }
}

/// Whether a subscription is gone, and when it was last changed or resumed.
async fn state(connection: &mut PgConnection, id: i64) -> (bool, Option<String>) {
    let state = "select state = 'gone', resumed_at::text from outbox.subscriptions where id = $1 for update";
    sqlx::query_as(state).bind(id).fetch_one(connection).await.unwrap()
}

/// What changes nothing ends nothing.
fn change(
    made: (Instant, Instant),
    before: &(bool, Option<String>),
    after: &(bool, Option<String>),
) -> Change {
    let (begun, done) = made;
    Change { begun, done, was_gone: before.0 && !after.0, is_new: before.1 != after.1 }
}

/// Creates or changes a subscription. Returns its id.
async fn save(connection: &mut PgConnection, name: &str, spec: &Spec, url: &str, start: &str) -> i64 {
    sqlx::query_scalar(
        "select outbox.subscribe($1, $2, 'webhook', $3, organization => $4, keys => $5, filter => $6, \
                match => $7, retry => $8, max_in_flight => $9, start => $10)",
    )
    .bind(name)
    .bind(&spec.topics)
    .bind(spec.config(url))
    .bind(spec.organization)
    .bind(&spec.keys)
    .bind(spec.filter)
    .bind(spec.matched.map(|kind| json!({"kind": kind})))
    .bind(json!({"schedule": spec.schedule}))
    .bind(spec.max_in_flight)
    .bind(start)
    .fetch_one(connection)
    .await
    .unwrap()
}
