//! The same sequence of statements on the model's database and on PostgreSQL, through the product's store.
//! After each one the same must be there.

mod claims;
mod settle;
mod state;

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use pgoutbox::{
    delivery::{DeliveryId, PageId, SubscriptionId, ranges::Ranges},
    event::{Event, Position},
    sink::Registry,
    store::{
        self, Advance, ConnectionSettings, NewDelivery, NewPage, Ordering, Page, Read, Routed, Store,
        SubscriptionRow,
    },
    subscription::Subscription,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use sqlx::{Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{
    database::{Cursor, Database, Millis, Read as ModelRead, date},
    number,
};
use crate::support;

/// A lease that ends only when the test says so.
const LEASE: Duration = Duration::from_secs(1_000_000);
const MODEL_LEASE: Millis = 1_000_000_000;
/// More than there is.
const ALL: usize = 1_000;
/// Unordered, unordered, ordered by key.
const IDS: [i64; 3] = [1, 2, 3];
const ORDERED: i64 = 3;

/// A page in the hands of a relay.
#[derive(Debug)]
struct Held {
    page: PageId,
    model: PageId,
    token: Uuid,
    deaths: i16,
    alone: i16,
    /// Subscription, position, and whether it is settled.
    pairs: Vec<(SubscriptionId, i64, bool)>,
}

/// A row in the hands of a relay.
#[derive(Debug)]
struct HeldRow {
    row: DeliveryId,
    model: DeliveryId,
    token: Uuid,
    subscription: SubscriptionId,
}

/// What a relay has read and not written.
struct Stale {
    cursor: store::Cursor,
    read: Read,
    model: (Cursor, ModelRead),
}

/// Both databases, and what relays hold of them.
struct Both {
    random: StdRng,
    database: support::Database,
    store: Store,
    connection: PgConnection,
    model: Database,
    open: Vec<(PgConnection, Option<u64>)>,
    pages: Vec<Held>,
    rows: Vec<HeldRow>,
    stale: Option<Stale>,
    /// Tokens of two relays for ordered subscriptions.
    order: [Uuid; 2],
}

impl Both {
    async fn new(seed: u64) -> Self {
        let database = support::Database::new().await;
        database
            .execute(
                "select outbox.subscribe('s1', array['a.*'], 'recorder'); \
                 select outbox.subscribe('s2', array['a.*'], 'recorder'); \
                 select outbox.subscribe('s3', array['a.*'], 'recorder', ordering => 'key')",
            )
            .await;
        let ids: Vec<i64> = sqlx::query_scalar("select id from outbox.subscriptions order by id")
            .fetch_all(&database.pool)
            .await
            .unwrap();
        assert_eq!(ids, IDS);
        let first: i64 =
            sqlx::query_scalar("select last_value + is_called::int from outbox.events_position_seq")
                .fetch_one(&database.pool)
                .await
                .unwrap();
        let settings = ConnectionSettings {
            servers: database.relay_options.clone().into(),
            relay: "model".to_owned(),
            environment: "default".to_owned(),
            pool_size: 2,
            function_pool_size: 1,
            pooler: false,
            allow_superuser: false,
        };
        let store = Store::connect(settings).await.unwrap();
        let mut model = Database::new(None, first);
        for id in IDS {
            model.subscribe(subscription(id, true));
        }
        let mut random = StdRng::seed_from_u64(seed);
        let order = [Uuid::from_u128(random.random()), Uuid::from_u128(random.random())];
        let connection = database.connection().await;
        let (open, pages, rows) = (Vec::new(), Vec::new(), Vec::new());
        Self { random, database, store, connection, model, open, pages, rows, stale: None, order }
    }

    fn token(&mut self) -> Uuid {
        Uuid::from_u128(self.random.random())
    }

    async fn publish(&mut self) {
        if self.open.len() < 3 && (self.open.is_empty() || self.random.random_bool(0.3)) {
            let mut connection = self.database.connection().await;
            connection.execute("set outbox.doorbell = 'off'; begin").await.unwrap();
            self.open.push((connection, None));
        }
        let at = self.random.random_range(0..self.open.len());
        for _ in 0..self.random.random_range(1..6) {
            let key = *[None, Some("k1"), Some("k2"), Some("k3")].choose(&mut self.random).unwrap();
            let id = self.token();
            let (position, created_at): (i64, DateTime<Utc>) = sqlx::query_as(
                "insert into outbox.events (id, topic, key, payload) values ($1, 'a.b', $2, '{}') \
                 returning position, created_at",
            )
            .bind(id)
            .bind(key)
            .fetch_one(&mut self.open[at].0)
            .await
            .unwrap();
            let xid = *self.open[at].1.get_or_insert_with(|| self.model.begin());
            assert_eq!(self.model.draw(), position, "positions are drawn alike");
            self.model.insert(xid, event(id, position, key, created_at));
        }
        if self.random.random_bool(0.5) {
            self.end_transaction(at).await;
        }
    }

    async fn end_transaction(&mut self, at: usize) {
        let (mut connection, xid) = self.open.swap_remove(at);
        let commits = self.random.random_bool(0.8);
        connection.execute(if commits { "commit" } else { "rollback" }).await.unwrap();
        connection.close().await.unwrap();
        match xid {
            Some(xid) if commits => _ = self.model.commit(xid, true),
            Some(xid) => self.model.rollback(xid),
            None => {}
        }
    }

    /// One routing step, or one of a relay that has been overtaken.
    async fn route(&mut self) {
        if let Some(Stale { cursor, read, model }) = self.stale.take() {
            let routed = Routed::default();
            let token = self.token();
            let moved = self.store.advance_cursor(&cursor, &read, Advance::All, &routed, token, LEASE, &[]);
            let moved = moved.await.unwrap();
            let (of_model, read) = model;
            let by_model =
                self.model.advance_cursor(&of_model, &read, Advance::All, &routed, (token, MODEL_LEASE));
            assert_eq!(moved.is_some(), by_model.is_some(), "who is overtaken writes nothing");
            return;
        }
        let events = self.random.random_range(1..12);
        let positions = self.random.random_range(1..30);
        let cursor = self.store.load_cursor(0).await.unwrap();
        let page = Page { events, with_payloads: false, positions, through_window: false };
        let read = self.store.read_events(&cursor, page).await.unwrap().unwrap();
        let of_model = self.model.load_cursor();
        let by_model = self.model.read_events(&of_model, events, positions).unwrap();
        let places =
            |events: &[store::NewEvent]| events.iter().map(|new| new.event.position.0).collect::<Vec<_>>();
        assert_eq!(places(&read.events), places(&by_model.events), "the same events are read");
        assert_eq!(read.is_of_window(), by_model.is_of_window());
        if read.events.is_empty() && !read.is_of_window() {
            return;
        }
        let (advance, routed) = self.draw_plan(&read);
        let token = self.token();
        if self.random.random_bool(0.1) {
            // Another relay moves it first.
            self.stale = Some(Stale { cursor: cursor.clone(), read, model: (of_model.clone(), by_model) });
            let again = self.store.read_events(&cursor, page).await.unwrap().unwrap();
            let by_model = self.model.read_events(&of_model, events, positions).unwrap();
            return self.advance(&cursor, &again, (&of_model, &by_model), advance, &routed, token).await;
        }
        self.advance(&cursor, &read, (&of_model, &by_model), advance, &routed, token).await;
    }

    async fn advance(
        &mut self,
        cursor: &store::Cursor,
        read: &Read,
        (of_model, by_model): (&Cursor, &ModelRead),
        advance: Advance,
        routed: &Routed,
        token: Uuid,
    ) {
        let moved =
            self.store.advance_cursor(cursor, read, advance, routed, token, LEASE, &[]).await.unwrap();
        let by_model = self.model.advance_cursor(of_model, by_model, advance, routed, (token, MODEL_LEASE));
        let ((_, pages, _), (_, by_model, _)) = (moved.unwrap(), by_model.unwrap());
        for ((page, model), written) in pages.into_iter().zip(by_model).zip(&routed.pages) {
            let pairs = written.entries.iter().flat_map(|(to, at)| at.iter().map(|at| (*to, at, false)));
            let pairs = pairs.collect();
            self.pages.push(Held { page, model, token, deaths: 0, alone: 0, pairs });
        }
    }

    /// Where each pair goes, and how far the cursor moves.
    fn draw_plan(&mut self, read: &Read) -> (Advance, Routed) {
        let mut events: Vec<_> =
            read.events.iter().map(|new| (new.event.position, new.event.created_at)).collect();
        let mut advance = Advance::All;
        if events.len() > 1 && self.random.random_bool(0.2) {
            events.truncate(self.random.random_range(1..events.len()));
            advance = Advance::UpTo(events[events.len() - 1].0);
        }
        let mut routed = Routed::default();
        let mut pages = [NewPage::default(), NewPage::default()];
        for (n, id) in IDS.into_iter().enumerate() {
            let (mut here, mut back) = (Ranges::default(), Ranges::default());
            for (position, created_at) in &events {
                match self.random.random_range(0..10) {
                    _ if id == ORDERED => back.insert(position.0),
                    0 => routed.timed.push(NewDelivery {
                        position: *position,
                        created_at: *created_at,
                        subscription: SubscriptionId(id),
                        deliver_after: None,
                        priority: 0,
                    }),
                    1..4 => back.insert(position.0),
                    _ => here.insert(position.0),
                }
            }
            if !here.is_empty() {
                pages[n % 2].entries.push((SubscriptionId(id), here));
            }
            if !back.is_empty() {
                routed.waiting.push((SubscriptionId(id), back));
            }
        }
        routed.pages = pages.into_iter().filter(|page| !page.entries.is_empty()).collect();
        (advance, routed)
    }

    async fn pause_or_resume(&mut self) {
        let id = *IDS.choose(&mut self.random).unwrap();
        let is_active = self.model.data.subscriptions.get(&id).unwrap().row.active;
        let what = if is_active { "pause" } else { "resume" };
        self.database.execute(format!("select outbox.{what}('s{id}')")).await;
        self.model.subscribe(subscription(id, !is_active));
        // It is published.
        let newest = "select position, id, key, created_at from outbox.events order by position desc limit 1";
        let (position, id, key, created_at): (i64, Uuid, Option<String>, DateTime<Utc>) =
            sqlx::query_as(newest).fetch_one(&mut self.connection).await.unwrap();
        let xid = self.model.begin();
        assert_eq!(self.model.draw(), position, "a change of a subscription is one event");
        self.model.insert(xid, event(id, position, key.as_deref(), created_at));
        assert!(self.model.commit(xid, true));
    }

    async fn redrive(&mut self) {
        let id = *IDS.choose(&mut self.random).unwrap();
        let redriven: i64 = sqlx::query_scalar("select outbox.redrive($1)")
            .bind(format!("s{id}"))
            .fetch_one(&mut self.connection)
            .await
            .unwrap();
        assert_eq!(usize::try_from(redriven).unwrap(), self.model.redrive(id), "as many are redriven");
    }

    async fn step(&mut self) -> &'static str {
        self.model.now += 1_000;
        match self.random.random_range(0..100) {
            0..14 => self.publish().await,
            14..20 if self.open.is_empty() => {}
            14..20 => {
                let at = self.random.random_range(0..self.open.len());
                self.end_transaction(at).await;
            }
            20..36 => {
                self.route().await;
                return "route";
            }
            36..44 => {
                self.claim().await;
                return "claim";
            }
            44..50 => {
                self.claim_rows().await;
                return "claim_rows";
            }
            50..64 => {
                self.claim_in_order().await;
                return "claim_in_order";
            }
            64..76 => {
                self.settle_some().await;
                return "settle_pages";
            }
            76..84 => {
                self.settle_some_rows().await;
                return "settle_rows";
            }
            84..89 => {
                self.expire().await;
                return "expire";
            }
            89..94 => {
                self.take_over().await;
                return "take_over";
            }
            94..96 => {
                self.renew().await;
                return "renew";
            }
            96..98 => {
                self.redrive().await;
                return "redrive";
            }
            _ => {
                self.pause_or_resume().await;
                return "pause";
            }
        }
        "publish"
    }

    async fn run(mut self, seed: u64, steps: usize) {
        for step in 0..steps {
            let what = self.step().await;
            let (real, of_model) = (self.state().await, self.model_state());
            let missing: Vec<_> = of_model.iter().filter(|line| !real.contains(line)).collect();
            let other: Vec<_> = real.iter().filter(|line| !of_model.contains(line)).collect();
            assert!(
                real == of_model,
                "seed {seed}, step {step}, {what}: only in the model {missing:#?}, \
                 only in PostgreSQL {other:#?}"
            );
        }
        for (connection, _) in self.open {
            connection.close().await.unwrap();
        }
        self.connection.close().await.unwrap();
        self.store.close().await;
        self.database.drop().await;
    }
}

fn subscription(id: i64, active: bool) -> Arc<Subscription> {
    let ordering = if id == ORDERED { Ordering::Key } else { Ordering::None };
    let new = SubscriptionRow::new(&format!("s{id}"), &["a.*"], "recorder", serde_json::json!({}));
    let row = SubscriptionRow { id: SubscriptionId(id), ordering, active, ..new };
    Arc::new(Subscription::bind(row, &Registry::default()).0)
}

fn event(id: Uuid, position: i64, key: Option<&str>, created_at: DateTime<Utc>) -> Event {
    Event {
        id,
        position: Position(position),
        created_at,
        topic: "a.b".to_owned(),
        key: key.map(str::to_owned),
        payload: "{}".to_owned(),
        headers: "{}".to_owned(),
        organization: None,
        source: None,
        user_id: None,
        schema_version: None,
    }
}

#[tokio::test]
async fn the_same_statements_do_the_same_to_the_model_and_to_postgresql() {
    let first = number("PGOUTBOX_TEST_SEED").unwrap_or(1);
    for seed in first..first + 4 {
        Both::new(seed).await.run(seed, 120).await;
    }
}

#[tokio::test]
#[ignore = "make model"]
async fn many_sequences_of_statements_do_the_same_to_the_model_and_to_postgresql() {
    let first = support::seed() >> 8;
    for seed in first..first + number("PGOUTBOX_TEST_SEQUENCES").unwrap_or(50) {
        Both::new(seed).await.run(seed, 400).await;
    }
}
