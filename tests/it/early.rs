//! Urgent events that are routed before their turn: the steps of two relays run in random order, with
//! transactions that commit late or never, relays that die between any two statements, and commits whose
//! answer is lost. Each committed event is routed once.

use std::{collections::BTreeMap, time::Duration};

use pgoutbox::{
    delivery::{SubscriptionId, ranges::Ranges},
    event::Position,
    store::{Advance, ConnectionSettings, Cursor, Looked, NewDelivery, Page, Read, Routed, Store, Urgent},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sqlx::{Executor as _, Postgres, Transaction};
use uuid::Uuid;

use crate::support::{Database, Recorder, RelayBox, seed};

/// The only subscriptions: one from the beginning, and one that is made later and wants what is past.
const FIRST: SubscriptionId = SubscriptionId(1);
const LATE: SubscriptionId = SubscriptionId(2);

/// What a relay has in memory.
#[derive(Default)]
struct Relay {
    cursor: Option<Cursor>,
    read: Option<Read>,
    urgent: Option<Urgent>,
    looked: Option<Looked>,
    /// It has read the later subscription.
    knows_late: bool,
    /// A step of it has fixed what is past for that.
    has_fixed: bool,
}

struct Model {
    database: Database,
    store: Store,
    random: StdRng,
    open: Vec<Transaction<'static, Postgres>>,
    relays: [Relay; 2],
    /// The generation of the later subscription, once that is made.
    late: Option<i64>,
    early: u32,
    windows: u32,
}

impl Model {
    async fn new(seed: u64) -> Self {
        let database = Database::new().await;
        database.execute("select outbox.subscribe('first', array['**'], 'recorder')").await;
        let settings = ConnectionSettings {
            servers: database.options.clone().into(),
            relay: "relay".to_owned(),
            environment: String::new(),
            pool_size: 4,
            function_pool_size: 1,
            pooler: false,
            allow_superuser: true,
        };
        let store = Store::connect(settings).await.unwrap();
        store.inspect().await.unwrap();
        Self {
            database,
            store,
            random: StdRng::seed_from_u64(seed),
            open: Vec::new(),
            relays: [Relay::default(), Relay::default()],
            late: None,
            early: 0,
            windows: 0,
        }
    }

    async fn publish(&mut self) {
        let count = self.random.random_range(1..12);
        let urgent = self.random.random_range(0..4);
        let sql = format!(
            "select outbox.publish('a.b', '1', priority => case when n % 4 = {urgent} then n else 0 end)
               from generate_series(1, {count}) as n"
        );
        if self.open.len() < 4 && self.random.random_bool(0.5) {
            self.open.push(self.database.pool.begin().await.unwrap());
        }
        if self.open.is_empty() || self.random.random_bool(0.4) {
            self.database.execute(sql).await;
        } else {
            let at = self.random.random_range(0..self.open.len());
            self.open[at].execute(sqlx::raw_sql(sqlx::AssertSqlSafe(sql))).await.unwrap();
        }
    }

    async fn end(&mut self) {
        if !self.open.is_empty() {
            let at = self.random.random_range(0..self.open.len());
            let one = self.open.swap_remove(at);
            if self.random.random_bool(0.2) { one.rollback().await } else { one.commit().await }.unwrap();
        }
    }

    async fn subscribe_late(&mut self) {
        let sql = "select outbox.subscribe('late', array['**'], 'recorder', start => 'beginning')";
        self.database.execute(sql).await;
        self.late = Some(self.database.count("select value from outbox.generation").await);
    }

    /// The next statement of a relay. `dies`: it gets no answer.
    async fn step(&mut self, at: usize, dies: bool) {
        let most = self.random.random_range(2..8);
        let upto = self.random.random_range(0..10);
        let looks = self.random.random_bool(0.5);
        let relay = &mut self.relays[at];
        let cursor = match relay.cursor.clone() {
            Some(cursor) => cursor,
            None => self.store.load_cursor(0).await.unwrap(),
        };
        relay.cursor = Some(cursor.clone());
        let mut lost = false;
        let reload = |relay: &mut Relay, generation| {
            relay.knows_late |= self.late.is_some_and(|late| generation >= late);
            if relay.knows_late { vec![FIRST, LATE] } else { vec![FIRST] }
        };
        if let Some(urgent) = relay.urgent.take() {
            let subscriptions = reload(relay, urgent.generation);
            if relay.knows_late && !relay.has_fixed {
                return;
            }
            let deliveries: Vec<NewDelivery> = (urgent.events.iter())
                .flat_map(|new| {
                    subscriptions.iter().map(move |subscription| NewDelivery {
                        position: new.event.position,
                        created_at: new.event.created_at,
                        subscription: *subscription,
                        deliver_after: None,
                        priority: new.priority,
                    })
                })
                .collect();
            let routed = self.store.route_early(&cursor, &urgent.events, &deliveries).await.unwrap();
            self.early += u32::from(routed.is_some());
            match routed {
                Some(next) => (relay.cursor, relay.looked) = (Some(next), urgent.looked),
                None => lost = true,
            }
        } else if let Some(read) = relay.read.take() {
            let subscriptions = reload(relay, read.generation);
            let positions: Vec<Position> =
                read.events.iter().filter(|new| !new.routed_early).map(|new| new.event.position).collect();
            let advance = match read.events.get(upto) {
                Some(new) => Advance::UpTo(new.event.position),
                None => Advance::All,
            };
            let ranges: Ranges = positions
                .into_iter()
                .filter(|position| match advance {
                    Advance::All => true,
                    Advance::UpTo(last) => *position <= last,
                })
                .collect();
            let waiting = match ranges.is_empty() {
                true => Vec::new(),
                false => subscriptions.iter().map(|one| (*one, ranges.clone())).collect(),
            };
            let routed = Routed { waiting, ..Routed::default() };
            let starting = if relay.knows_late && !relay.has_fixed { vec![LATE] } else { Vec::new() };
            let lease = Duration::from_secs(10);
            let advanced = self
                .store
                .advance_cursor(&cursor, &read, advance, &routed, Uuid::new_v4(), lease, &starting)
                .await
                .unwrap();
            match advanced {
                Some((next, ..)) => {
                    self.windows += u32::from(next.has_window());
                    relay.cursor = Some(next);
                    relay.has_fixed = relay.knows_late;
                }
                None => lost = true,
            }
        } else if looks {
            let looked = relay.looked.clone();
            let read = self.store.read_urgent(&cursor, looked.as_ref(), most, false).await.unwrap();
            match read {
                // None of them is routed yet: the next look begins where this one began.
                Some(read) if read.events.is_empty() => relay.looked = read.looked,
                Some(read) => relay.urgent = Some(read),
                None => lost = true,
            }
        } else {
            let page = Page { events: most, with_payloads: false, positions: 20, through_window: false };
            match self.store.read_events(&cursor, page).await.unwrap() {
                Some(read) => relay.read = Some(read),
                None => lost = true,
            }
        }
        if lost {
            // As a relay does: the cursor is loaded again, and what is known of urgent events stays true.
            let Relay { looked, knows_late, has_fixed, .. } = std::mem::take(relay);
            *relay = Relay { looked, knows_late, has_fixed, ..Relay::default() };
        }
        if dies {
            *relay = Relay::default();
        }
    }

    /// How often each event was routed for a subscription. Past events of one that begins earlier count, too.
    async fn routed(&self, subscription: SubscriptionId) -> BTreeMap<i64, i64> {
        let sql = "with routed (position) as (
                select position from outbox.deliveries where subscription_id = $1
                union all
                select generate_series(lower(span), upper(span) - 1)
                  from outbox.backlog cross join unnest(positions) as span where subscription_id = $1
                union all
                select event.position
                  from outbox.events as event
                  join outbox.starts as start on start.subscription_id = $1
                 where event.position <= start.until
                   and (pg_visible_in_snapshot(event.xid, start.settled)
                        or start.window_end is not null and event.position <= start.page_after
                           and pg_visible_in_snapshot(event.xid, start.window_end)))
            select event.position, count(routed.position)
              from outbox.events as event left join routed using (position) group by 1";
        sqlx::query_as(sql)
            .bind(subscription.0)
            .fetch_all(&self.database.pool)
            .await
            .unwrap()
            .into_iter()
            .collect()
    }
}

#[tokio::test]
async fn whatever_is_routed_early_and_whoever_dies_each_event_is_routed_once() {
    let (mut early, mut windows) = (0, 0);
    let first = seed();
    for seed in first..first + 6 {
        let mut model = Model::new(seed).await;
        for round in 0..250 {
            let at = model.random.random_range(0..2);
            match model.random.random_range(0..20) {
                0..3 => model.publish().await,
                3..5 => model.end().await,
                5 if round > 100 && model.late.is_none() => model.subscribe_late().await,
                6 => model.step(at, true).await,
                _ => model.step(at, false).await,
            }
        }
        if model.late.is_none() {
            model.subscribe_late().await;
        }
        while !model.open.is_empty() {
            model.end().await;
        }
        for _ in 0..4_000 {
            model.step(0, false).await;
            let quiet = "select (select window_end is null from outbox.cursor)
                            and not exists (select from outbox.events, outbox.cursor
                                             where not pg_visible_in_snapshot(xid, settled))
                            and not exists (select from outbox.starts where settled is null)";
            let done: bool = sqlx::query_scalar(quiet).fetch_one(&model.database.pool).await.unwrap();
            if done {
                break;
            }
        }
        for subscription in [FIRST, LATE] {
            let routed = model.routed(subscription).await;
            let wrong: Vec<_> = routed.iter().filter(|(_, times)| **times != 1).collect();
            assert!(wrong.is_empty(), "seed {seed}: routed to {subscription:?} not once: {wrong:?}");
        }
        assert_eq!(model.database.count("select count(*) from outbox.routed_early").await, 0, "seed {seed}");
        (early, windows) = (early + model.early, windows + model.windows);
        model.store.close().await;
        model.database.drop().await;
    }
    assert!(early > 20 && windows > 50, "too little happened: {early} early steps, {windows} in windows");
}

#[tokio::test]
async fn an_urgent_event_overtakes_a_backlog_that_waits_in_the_log() {
    let database = Database::new().await;
    database.execute("select outbox.subscribe('narrow', array['**'], 'recorder', max_in_flight => 2)").await;
    let recorder = Recorder::new();
    let closed = recorder.gate.clone().write_owned().await;
    let relay = RelayBox::start(&database, &recorder).await;
    database.execute("select outbox.publish('a.many', '1') from generate_series(1, 20000) as n").await;
    recorder.wait_for(2).await;
    database.execute("select outbox.publish('a.urgent', '1', priority => 1)").await;
    database.eventually("select exists (select from outbox.deliveries)").await;
    let waiting = "select count(*) from outbox.events, outbox.cursor
                    where not pg_visible_in_snapshot(xid, settled)
                      and position > coalesce(page_after, 0)";
    assert!(database.count(waiting).await > 10_000, "they wait in the log");
    drop(closed);
    let seen = recorder.wait_until(|seen| seen.iter().any(|one| one.topic == "a.urgent")).await;
    let before = seen.iter().position(|one| one.topic == "a.urgent").unwrap();
    assert!(before < 2_000, "{before} of 20,000 went first");
    // Routing passes it: it is not sent again.
    let seen = recorder.wait_for(20_001).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    database.eventually("select not exists (select from outbox.routed_early)").await;
    assert_eq!(seen.iter().filter(|one| one.topic == "a.urgent").count(), 1);
    relay.stop().await;
    database.drop().await;
}
