//! The protocol of pages: its statements run in random order on PostgreSQL, with relays that die between any
//! two of them, freeze and wake, commits whose answer is lost, and transactions that commit late. A model
//! knows what is owed and what may come twice.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use pgoutbox::delivery::ranges::Ranges;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{Connection, Executor, PgConnection, Row as _, postgres::PgRow};
use uuid::Uuid;

use crate::support::{Database, plans, seed};

macro_rules! statement {
    ($name:literal) => {
        sqlx::query(include_str!(concat!("../../sql/relay/", $name, ".sql")))
    };
}

type Pair = (i64, i64);

/// How a pair of a page stands in its relay's memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Ahead,
    InFlight,
    Answered(bool),
    Settled,
}

#[derive(Debug)]
struct Page {
    id: i64,
    token: Uuid,
    deaths: i16,
    alone: i16,
    pairs: Vec<(Pair, Stage)>,
}

#[derive(Debug, Default)]
struct Relay {
    pages: Vec<Page>,
    rows: Vec<(i64, Uuid, Pair, Stage)>,
    /// Its leases have ended while it was frozen, and others may hold what it had.
    stale: bool,
}

/// What is known outside the database.
#[derive(Debug, Default)]
struct Model {
    owed: BTreeSet<Pair>,
    sent: BTreeMap<Pair, u32>,
    failed: BTreeMap<Pair, u32>,
    delivered: BTreeSet<Pair>,
    /// Copies that faults may have caused.
    allowed: u32,
    faults: BTreeMap<&'static str, u32>,
}

struct World {
    random: StdRng,
    model: Model,
    relays: Vec<Relay>,
    connection: PgConnection,
    open: Vec<(PgConnection, Vec<i64>)>,
    database: Database,
    subscriptions: Vec<i64>,
}

impl World {
    async fn publish(&mut self) {
        let many = self.random.random_range(1..30);
        let insert = "insert into outbox.events (topic, payload) \
                      select 'a.b', to_jsonb(n) from generate_series(1, $1::int) as n returning position";
        if self.open.len() < 3 && self.random.random_bool(0.3) {
            let mut late = self.database.connection().await;
            late.execute("begin").await.unwrap();
            let positions = sqlx::query_scalar(insert).bind(many).fetch_all(&mut late).await.unwrap();
            self.open.push((late, positions));
        } else {
            let positions: Vec<i64> =
                sqlx::query_scalar(insert).bind(many).fetch_all(&mut self.connection).await.unwrap();
            self.committed(&positions);
        }
    }

    fn committed(&mut self, positions: &[i64]) {
        for &subscription in &self.subscriptions {
            self.model.owed.extend(positions.iter().map(|position| (subscription, *position)));
        }
    }

    async fn end_late(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.open.len());
        let (mut late, positions) = self.open.swap_remove(at);
        let commits = self.random.random_bool(0.7);
        late.execute(if commits { "commit" } else { "rollback" }).await.unwrap();
        late.close().await.unwrap();
        if commits {
            self.committed(&positions);
        }
    }

    /// Runs a statement. Sometimes its transaction is lost, or its answer is lost and the statement runs
    /// again.
    async fn lossy(&mut self, run: impl AsyncFn(&mut PgConnection) -> Vec<PgRow>) -> Option<Vec<PgRow>> {
        match self.random.random_range(0..10) {
            0 => {
                *self.model.faults.entry("rolled back").or_default() += 1;
                let mut transaction = self.connection.begin().await.unwrap();
                run(&mut transaction).await;
                transaction.rollback().await.unwrap();
                None
            }
            1 => {
                *self.model.faults.entry("answer lost").or_default() += 1;
                run(&mut self.connection).await;
                None
            }
            _ => Some(run(&mut self.connection).await),
        }
    }

    async fn route(&mut self, relay: usize) {
        let cursor = statement!("load_cursor").bind(0i64).fetch_one(&mut self.connection).await.unwrap();
        let step: i64 = cursor.get("step");
        let events = statement!("read_events")
            .bind(cursor.get::<String, _>("settled_xmax"))
            .bind(cursor.get::<Vec<String>, _>("settled_xip"))
            .bind(10_000i64)
            .bind(false)
            .bind(step)
            .fetch_all(&mut self.connection)
            .await
            .unwrap();
        let (snapshot, drawn): (String, i64) = (events[0].get("snapshot"), events[0].get("drawn"));
        let read: Vec<(i64, DateTime<Utc>)> = events
            .iter()
            .filter_map(|row| Some((row.get::<Option<i64>, _>("position")?, row.get("created_at"))))
            .collect();
        let mut events = read;
        events.sort_unstable();
        let mut paged: Vec<(i32, i64, Ranges)> = Vec::new();
        let mut waiting: Vec<(i64, Ranges)> = Vec::new();
        let mut rows: Vec<(i64, DateTime<Utc>, i64)> = Vec::new();
        for (n, &subscription) in self.subscriptions.iter().enumerate() {
            let (mut here, mut back) = (Ranges::default(), Ranges::default());
            for &(position, created_at) in &events {
                match self.random.random_range(0..10) {
                    0 => rows.push((position, created_at, subscription)),
                    1 | 2 => back.insert(position),
                    _ => here.insert(position),
                }
            }
            if !here.is_empty() {
                paged.push((i32::from(n >= 2), subscription, here));
            }
            if !back.is_empty() {
                waiting.push((subscription, back));
            }
        }
        let token = Uuid::new_v4();
        let span = (events.iter().map(|event| event.1).min(), events.iter().map(|event| event.1).max());
        let moved = self
            .lossy(async |connection| {
                statement!("advance_cursor")
                    .bind(step)
                    .bind(&snapshot)
                    .bind(None::<i64>)
                    .bind(None::<String>)
                    .bind(None::<i64>)
                    .bind(None::<i64>)
                    .bind(None::<i64>)
                    .bind(paged.iter().map(|entry| entry.0).collect::<Vec<_>>())
                    .bind(paged.iter().map(|entry| entry.1).collect::<Vec<_>>())
                    .bind(paged.iter().map(|entry| entry.2.to_string()).collect::<Vec<_>>())
                    .bind(token)
                    .bind(1_000_000f64)
                    .bind("relay")
                    .bind(waiting.iter().map(|entry| entry.0).collect::<Vec<_>>())
                    .bind(waiting.iter().map(|entry| entry.1.to_string()).collect::<Vec<_>>())
                    .bind(span.0)
                    .bind(span.1)
                    .bind(drawn)
                    .bind(None::<String>)
                    .bind(None::<String>)
                    .bind(Vec::<i64>::new())
                    .bind(rows.iter().map(|row| row.0).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.1).collect::<Vec<_>>())
                    .bind(rows.iter().map(|row| row.2).collect::<Vec<_>>())
                    .bind(rows.iter().map(|_| None::<DateTime<Utc>>).collect::<Vec<_>>())
                    .bind(rows.iter().map(|_| 0i32).collect::<Vec<_>>())
                    .bind(Vec::<i64>::new())
                    .fetch_all(connection)
                    .await
                    .unwrap()
            })
            .await;
        let Some(moved) = moved else {
            // What it may have leased under a token nobody knows falls due.
            self.expire(token).await;
            return;
        };
        let mut ids: Vec<i64> = moved.iter().filter_map(|row| row.get::<Option<i64>, _>(0)).collect();
        ids.sort_unstable();
        let mut numbers: Vec<i32> = paged.iter().map(|entry| entry.0).collect();
        numbers.dedup();
        assert_eq!(ids.len(), numbers.len(), "a page each, when the cursor moved");
        for (id, number) in ids.into_iter().zip(numbers) {
            let pairs = paged
                .iter()
                .filter(|entry| entry.0 == number)
                .flat_map(|(_, to, owed)| owed.iter().map(|at| ((*to, at), Stage::Ahead)));
            self.relays[relay].pages.push(Page { id, token, deaths: 0, alone: 0, pairs: pairs.collect() });
        }
    }

    async fn expire(&mut self, token: Uuid) {
        for table in ["pages", "deliveries"] {
            sqlx::query(sqlx::AssertSqlSafe(format!(
                "update outbox.{table} set due_at = now() - interval '1 second' where lease_token = $1"
            )))
            .bind(token)
            .execute(&mut self.connection)
            .await
            .unwrap();
        }
    }

    /// Attempts begin and end.
    fn deliver(&mut self, relay: usize) {
        let World { relays, random, model, .. } = self;
        let relay = &mut relays[relay];
        let stale = relay.stale;
        let of_pages =
            relay.pages.iter_mut().flat_map(|page| page.pairs.iter_mut().map(|(pair, stage)| (*pair, stage)));
        for (pair, stage) in of_pages.chain(relay.rows.iter_mut().map(|row| (row.2, &mut row.3))) {
            match *stage {
                Stage::Ahead if !stale && random.random_bool(0.5) => {
                    *stage = Stage::InFlight;
                    *model.sent.entry(pair).or_default() += 1;
                }
                Stage::InFlight if random.random_bool(0.5) => {
                    let delivered = random.random_bool(0.85);
                    *stage = Stage::Answered(delivered);
                    if delivered {
                        model.delivered.insert(pair);
                    } else {
                        *model.failed.entry(pair).or_default() += 1;
                    }
                }
                _ => {}
            }
        }
    }

    /// Progress of some pages of a relay; `all` that is left of them goes to the backlog.
    async fn settle(&mut self, relay: usize, all: bool) {
        let mut parts = Parts::default();
        let mut touched: Vec<(usize, Vec<usize>)> = Vec::new();
        for (at, page) in self.relays[relay].pages.iter().enumerate() {
            let mut now = Ranges::default();
            let mut back: BTreeMap<i64, (Ranges, Ranges)> = BTreeMap::new();
            let mut chosen = Vec::new();
            for (number, ((subscription, position), stage)) in page.pairs.iter().enumerate() {
                let n = i64::try_from(number).unwrap();
                match stage {
                    Stage::Answered(delivered) if all || self.random.random_bool(0.7) => {
                        if !delivered {
                            parts.retries.push((page.id, n, *subscription, *position));
                        }
                    }
                    Stage::Ahead if all || self.random.random_bool(0.1) => {
                        let (numbers, positions) = back.entry(*subscription).or_default();
                        numbers.insert(n);
                        positions.insert(*position);
                    }
                    _ => continue,
                }
                now.insert(n);
                chosen.push(number);
            }
            if now.is_empty() {
                continue;
            }
            for (subscription, (numbers, positions)) in back {
                parts.back.push((page.id, numbers.to_string(), subscription, positions.to_string(), 0, 0));
            }
            let settled = page.pairs.iter().filter(|(_, stage)| *stage == Stage::Settled).count();
            if settled + chosen.len() == page.pairs.len() {
                parts.finished.push(page.id);
            } else {
                parts.pages.push((page.id, now.to_string()));
            }
            parts.tokens.push(page.token);
            touched.push((at, chosen));
        }
        if touched.is_empty() {
            return;
        }
        let plain = parts.retries.is_empty() && parts.back.is_empty();
        // Written again until it is known.
        while self
            .lossy(
                async |connection| {
                    if plain { parts.progress(connection).await } else { parts.write(connection).await }
                },
            )
            .await
            .is_none()
        {}
        for (at, chosen) in touched {
            for number in chosen {
                self.relays[relay].pages[at].pairs[number].1 = Stage::Settled;
            }
        }
        self.relays[relay].pages.retain(|page| page.pairs.iter().any(|(_, stage)| *stage != Stage::Settled));
    }

    async fn settle_rows(&mut self, relay: usize) {
        let rows = std::mem::take(&mut self.relays[relay].rows);
        let (answered, rest): (Vec<_>, Vec<_>) =
            rows.into_iter().partition(|row| matches!(row.3, Stage::Answered(_)));
        self.relays[relay].rows = rest;
        let of = |delivered| {
            answered
                .iter()
                .filter(move |row| row.3 == Stage::Answered(delivered))
                .map(|row| row.0)
                .collect::<Vec<i64>>()
        };
        let tokens: Vec<Uuid> = answered.iter().map(|row| row.1).collect();
        statement!("settle_delivered")
            .bind(of(true))
            .bind(&tokens)
            .execute(&mut self.connection)
            .await
            .unwrap();
        let failed = of(false);
        statement!("settle_retries")
            .bind(&failed)
            .bind(&tokens)
            .bind(vec![0f64; failed.len()])
            .bind(vec![true; failed.len()])
            .bind(vec![false; failed.len()])
            .execute(&mut self.connection)
            .await
            .unwrap();
    }

    /// A relay that dies, or that sleeps while its leases end.
    async fn strike(&mut self, relay: usize, freezes: bool) {
        let struck = &mut self.relays[relay];
        let held = struck
            .pages
            .iter()
            .flat_map(|page| page.pairs.iter().map(|pair| pair.1))
            .chain(struck.rows.iter().map(|row| row.3));
        let at_risk = held.filter(|stage| matches!(stage, Stage::InFlight | Stage::Answered(_))).count();
        self.model.allowed += u32::try_from(at_risk).unwrap();
        *self.model.faults.entry(if freezes { "frozen" } else { "died" }).or_default() += 1;
        let tokens: Vec<Uuid> =
            struck.pages.iter().map(|page| page.token).chain(struck.rows.iter().map(|row| row.1)).collect();
        if freezes {
            struck.stale = true;
        } else {
            *struck = Relay::default();
        }
        for token in tokens {
            self.expire(token).await;
        }
    }

    async fn take_over(&mut self) {
        let token = Uuid::new_v4();
        let taken = self
            .lossy(async |connection| {
                statement!("take_over_pages")
                    .bind(0i64)
                    .bind(3i64)
                    .bind(token)
                    .bind(1_000_000f64)
                    .bind("relay")
                    .fetch_all(connection)
                    .await
                    .unwrap()
            })
            .await;
        let Some(taken) = taken else { return self.expire(token).await };
        if self.random.random_bool(0.2) {
            // It dies, too.
            return self.expire(token).await;
        }
        let mut parts = Parts::default();
        for page in taken.iter().map(|row| read_page(row, token)) {
            let mut left: BTreeMap<i64, (Ranges, Ranges)> = BTreeMap::new();
            for (number, ((subscription, position), stage)) in page.pairs.iter().enumerate() {
                if *stage == Stage::Ahead {
                    let (numbers, positions) = left.entry(*subscription).or_default();
                    numbers.insert(i64::try_from(number).unwrap());
                    positions.insert(*position);
                }
            }
            for (subscription, (numbers, positions)) in left {
                parts.back.push((
                    page.id,
                    numbers.to_string(),
                    subscription,
                    positions.to_string(),
                    page.deaths + 1,
                    page.alone,
                ));
            }
            parts.finished.push(page.id);
        }
        parts.tokens.push(token);
        while self.lossy(async |connection| parts.write(connection).await).await.is_none() {}
    }

    async fn claim(&mut self, relay: usize) {
        let suspects = self.random.random_bool(0.5);
        let token = Uuid::new_v4();
        let ids = self.subscriptions.clone();
        let wanted: Vec<i64> = ids.iter().map(|_| self.random.random_range(0..40)).collect();
        let own: Vec<bool> = ids.iter().map(|_| self.random.random_bool(0.3)).collect();
        let claimed = self
            .lossy(async |connection| {
                statement!("claim_backlog")
                    .bind(&ids)
                    .bind(&wanted)
                    .bind(vec![0i64; ids.len()])
                    .bind(&own)
                    .bind(suspects)
                    .bind(token)
                    .bind(1_000_000f64)
                    .bind("relay")
                    .fetch_all(connection)
                    .await
                    .unwrap()
            })
            .await;
        let Some(claimed) = claimed else { return self.expire(token).await };
        // Without a page it says of which subscriptions something stays.
        let pages = claimed.iter().filter(|row| row.get::<Option<i64>, _>("id").is_some());
        for page in pages.map(|row| read_page(row, token)) {
            let mut of_each: BTreeMap<i64, i64> = BTreeMap::new();
            page.pairs
                .iter()
                .for_each(|((subscription, _), _)| *of_each.entry(*subscription).or_default() += 1);
            let most = |id: &i64| wanted[ids.iter().position(|one| one == id).unwrap()];
            assert!(of_each.iter().all(|(id, count)| *count <= most(id)), "no more than wanted");
            self.relays[relay].pages.push(page);
        }
        let token = Uuid::new_v4();
        let rows = statement!("claim_deliveries")
            .bind(&ids)
            .bind(vec![20i32; ids.len()])
            .bind(vec![None::<DateTime<Utc>>; ids.len()])
            .bind(token)
            .bind(1_000_000f64)
            .fetch_all(&mut self.connection)
            .await
            .unwrap();
        for row in rows {
            let pair = (row.get("subscription_id"), row.get("position"));
            self.relays[relay].rows.push((row.get("id"), token, pair, Stage::Ahead));
        }
    }

    async fn act(&mut self) {
        let relay = self.random.random_range(0..self.relays.len());
        match self.random.random_range(0..100) {
            0..12 => self.publish().await,
            12..18 => self.end_late().await,
            18..34 if !self.relays[relay].stale => self.route(relay).await,
            34..56 => self.deliver(relay),
            56..74 => {
                self.settle(relay, false).await;
                self.settle_rows(relay).await;
            }
            74..84 if !self.relays[relay].stale => self.claim(relay).await,
            84..92 => self.take_over().await,
            92..95 => self.strike(relay, false).await,
            95..97 if !self.relays[relay].stale => self.strike(relay, true).await,
            97..100 if self.relays[relay].stale => {
                // It wakes, and its late verdicts change nothing.
                self.settle(relay, true).await;
                self.settle_rows(relay).await;
                self.relays[relay] = Relay::default();
            }
            _ => {}
        }
    }

    async fn drain(&mut self) {
        while !self.open.is_empty() {
            self.end_late().await;
        }
        for relay in 0..self.relays.len() {
            self.strike(relay, false).await;
        }
        for round in 0.. {
            assert!(
                round < 500,
                "nothing is stuck: {:?}",
                self.model.owed.difference(&self.model.delivered).collect::<Vec<_>>()
            );
            self.route(0).await;
            self.take_over().await;
            self.claim(0).await;
            while !self.relays[0].pages.is_empty() || !self.relays[0].rows.is_empty() {
                self.deliver(0);
                self.settle(0, false).await;
                self.settle_rows(0).await;
            }
            let left: i64 = sqlx::query_scalar(
                "select (select count(*) from outbox.pages) + (select count(*) from outbox.backlog) \
                 + (select count(*) from outbox.deliveries)",
            )
            .fetch_one(&mut self.connection)
            .await
            .unwrap();
            if left == 0 && self.model.owed.len() == self.model.delivered.len() {
                break;
            }
        }
    }
}

/// A page as a claim or a takeover returns it.
fn read_page(row: &PgRow, token: Uuid) -> Page {
    let done: Ranges = row.get::<String, _>("done").parse().unwrap();
    let subscriptions: Vec<i64> = row.get("subscriptions");
    let owed: Vec<String> = row.get("owed");
    let pairs = subscriptions
        .into_iter()
        .zip(owed)
        .flat_map(|(to, owed)| owed.parse::<Ranges>().unwrap().iter().map(|at| (to, at)).collect::<Vec<_>>());
    let stage = |number: usize| {
        if done.contains(i64::try_from(number).unwrap()) { Stage::Settled } else { Stage::Ahead }
    };
    let pairs = pairs.enumerate().map(|(number, pair)| (pair, stage(number))).collect();
    Page { id: row.get("id"), token, deaths: row.get("deaths"), alone: row.get("alone"), pairs }
}

/// What is written of pages at once.
#[derive(Debug, Default)]
struct Parts {
    pages: Vec<(i64, String)>,
    finished: Vec<i64>,
    tokens: Vec<Uuid>,
    retries: Vec<(i64, i64, i64, i64)>,
    back: Vec<(i64, String, i64, String, i16, i16)>,
}

impl Parts {
    async fn progress(&self, connection: &mut PgConnection) -> Vec<PgRow> {
        statement!("settle_pages")
            .bind(self.pages.iter().map(|page| page.0).collect::<Vec<_>>())
            .bind(self.pages.iter().map(|page| page.1.as_str()).collect::<Vec<_>>())
            .bind(&self.finished)
            .bind(&self.tokens)
            .fetch_all(connection)
            .await
            .unwrap()
    }

    async fn write(&self, connection: &mut PgConnection) -> Vec<PgRow> {
        let now: DateTime<Utc> = DateTime::from(std::time::SystemTime::now());
        let (retries, back) = (&self.retries, &self.back);
        statement!("settle_parts")
            .bind(self.pages.iter().map(|page| page.0).collect::<Vec<_>>())
            .bind(self.pages.iter().map(|page| page.1.as_str()).collect::<Vec<_>>())
            .bind(&self.finished)
            .bind(&self.tokens)
            .bind(retries.iter().map(|one| one.0).collect::<Vec<_>>())
            .bind(retries.iter().map(|one| i32::try_from(one.1).unwrap()).collect::<Vec<_>>())
            .bind(retries.iter().map(|one| one.2).collect::<Vec<_>>())
            .bind(retries.iter().map(|one| one.3).collect::<Vec<_>>())
            .bind(vec![now; retries.len()])
            .bind(vec![now; retries.len()])
            .bind(vec![1i32; retries.len()])
            .bind(vec![0f64; retries.len()])
            .bind(vec![0i32; retries.len()])
            .bind(Vec::<i64>::new())
            .bind(Vec::<i32>::new())
            .bind(Vec::<i64>::new())
            .bind(Vec::<i64>::new())
            .bind(Vec::<DateTime<Utc>>::new())
            .bind(Vec::<i32>::new())
            .bind(Vec::<String>::new())
            .bind(Vec::<i32>::new())
            .bind(Vec::<String>::new())
            .bind(back.iter().map(|one| one.0).collect::<Vec<_>>())
            .bind(back.iter().map(|one| one.1.as_str()).collect::<Vec<_>>())
            .bind(back.iter().map(|one| one.2).collect::<Vec<_>>())
            .bind(back.iter().map(|one| one.3.as_str()).collect::<Vec<_>>())
            .bind(vec![now; back.len()])
            .bind(vec![now; back.len()])
            .bind(vec![now; back.len()])
            .bind(back.iter().map(|one| one.4).collect::<Vec<_>>())
            .bind(back.iter().map(|one| one.5).collect::<Vec<_>>())
            .bind(vec![None::<String>; retries.len()])
            .bind(vec![false; retries.len()])
            .fetch_all(connection)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn whatever_dies_between_two_statements_nothing_is_lost_nothing_is_invented_and_copies_are_bounded() {
    let seed = seed();
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for round in 0..6 {
        let database = Database::new().await;
        database
            .execute(
                "select outbox.subscribe('s' || n, array['**'], 'recorder') from generate_series(1, 4) as n; \
                 set outbox.doorbell = 'off'",
            )
            .await;
        let connection = plans::relay_connection(&database).await;
        drop(connection);
        let connection = database.connection().await;
        let subscriptions = sqlx::query_scalar("select id from outbox.subscriptions order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
        let mut world = World {
            random: StdRng::seed_from_u64(seed.wrapping_add(round)),
            model: Model::default(),
            relays: (0..3).map(|_| Relay::default()).collect(),
            connection,
            open: Vec::new(),
            database,
            subscriptions,
        };
        for _ in 0..400 {
            world.act().await;
        }
        world.drain().await;
        let World { model, connection, database, .. } = world;
        assert_eq!(
            model.delivered, model.owed,
            "seed {seed}, round {round}: everything owed was delivered and nothing else"
        );
        let copies: u32 = model
            .sent
            .iter()
            .map(|(pair, sent)| sent - 1 - model.failed.get(pair).copied().unwrap_or(0).min(sent - 1))
            .sum();
        assert!(
            copies <= model.allowed,
            "seed {seed}, round {round}: {copies} copies, at most {}",
            model.allowed
        );
        model.faults.into_iter().for_each(|(name, times)| *faults.entry(name).or_default() += times);
        connection.close().await.unwrap();
        database.drop().await;
    }
    println!("{faults:?}");
    assert!(
        ["died", "frozen", "rolled back", "answer lost"]
            .iter()
            .all(|name| faults.get(name).is_some_and(|times| *times > 0)),
        "{faults:?}"
    );
}
