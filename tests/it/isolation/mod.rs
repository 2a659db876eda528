//! One slow, broken or hostile subscriber, publisher or tenant costs the others nothing.
//!
//! Each test measures live events of a good subscription from their commit to their receipt: first alone,
//! then beside the bad ones. Relays have their default settings. The limits here are wide, because other
//! tests use the same processors; `pgoutbox bench` has the ratios.

mod deaths;
mod hanging;
mod live_clients;
mod migrating;
mod organizations;
mod refusals;
mod routing;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use pgoutbox::relay::Settings;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::{
    support::{Database, Good, RelayBox},
    webhook_relay::webhook_to,
};

/// Pause between two live events.
const PACE: Duration = Duration::from_millis(10);
/// Live events in one measurement.
const EVENTS: usize = 200;

/// A relay with default settings that may send to all of 127.0.0.0/8. Ended by `abort`: what hangs would
/// only delay a drain.
async fn relay(database: &Database) -> RelayBox {
    let settings = Settings { name: "isolation".to_owned(), ..Settings::default() };
    RelayBox::start_with(database, |builder| builder.settings(settings).sink(webhook_to("127.0.0.0/8"))).await
}

/// Makes subscriptions, in this order.
async fn subscribe(database: &Database, made: &[(String, &str, String)]) {
    for (name, topic, url) in made {
        subscribe_as(database, name, topic, json!({ "url": url }), None).await;
    }
}

async fn subscribe_as(
    database: &Database,
    name: &str,
    topic: &str,
    config: Value,
    organization: Option<&str>,
) {
    sqlx::query("select outbox.subscribe($1, array[$2], 'webhook', $3, organization => $4)")
        .bind(name)
        .bind(topic)
        .bind(config)
        .bind(organization)
        .execute(&database.pool)
        .await
        .unwrap();
}

/// Publishes this many events in one transaction.
async fn publish(database: &Database, topic: &str, count: usize, organization: Option<&str>) {
    sqlx::query(
        "insert into outbox.events (topic, payload, organization) \
         select $1, jsonb_build_object('n', n), $3 from generate_series(1, $2) as n",
    )
    .bind(topic)
    .bind(i64::try_from(count).unwrap())
    .bind(organization)
    .execute(&database.pool)
    .await
    .unwrap();
}

/// A good subscription whose live events are measured.
#[derive(Debug)]
struct Live {
    good: Good,
    topic: &'static str,
    organization: Option<&'static str>,
    /// Subscriptions that send each event to this receiver.
    copies: usize,
}

impl Live {
    /// One good subscription to a topic of its own.
    async fn start(database: &Database, topic: &'static str) -> Self {
        Self::of(database, topic, None).await
    }

    /// One good subscription of an organization.
    async fn of(database: &Database, topic: &'static str, organization: Option<&'static str>) -> Self {
        let good = Good::start().await;
        subscribe_as(database, topic, topic, json!({ "url": good.url }), organization).await;
        Self { good, topic, organization, copies: 1 }
    }

    /// Commits one event. Returns its id and when it was committed.
    async fn publish(&self, connection: &mut sqlx::PgConnection) -> (Uuid, Instant) {
        let id = Uuid::new_v4();
        sqlx::query("insert into outbox.events (id, topic, payload, organization) values ($1, $2, '{}', $3)")
            .bind(id)
            .bind(self.topic)
            .bind(self.organization)
            .execute(connection)
            .await
            .unwrap();
        (id, Instant::now())
    }

    /// The latencies of some events, one after another at a steady pace.
    async fn measure(&mut self, database: &Database, what: &str) -> Latencies {
        self.measure_some(database, what, EVENTS).await
    }

    async fn measure_some(&mut self, database: &Database, what: &str, count: usize) -> Latencies {
        let mut connection = database.connection().await;
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut committed = HashMap::new();
        let mut arrived: Vec<(Uuid, Instant)> = Vec::new();
        let deadline = Instant::now() + PACE * u32::try_from(count).unwrap() + Duration::from_secs(30);
        while committed.len() < count {
            tokio::select! {
                biased;
                received = self.good.next(Duration::from_secs(60)) => arrived.push(arrival(received)),
                _ = pace.tick() => {
                    let (id, at) = self.publish(&mut connection).await;
                    committed.insert(id, at);
                }
            }
        }
        while arrived.len() < count * self.copies {
            let left = deadline.saturating_duration_since(Instant::now());
            let Some(received) = self.good.next(left).await else {
                panic!("{what}: {} of {} live events came in time", arrived.len(), count * self.copies);
            };
            arrived.push(arrival(Some(received)));
        }
        let took = arrived.iter().filter_map(|(id, at)| {
            committed.get(id).map(|committed| at.saturating_duration_since(*committed))
        });
        let latencies = Latencies::new(took.collect());
        eprintln!("{what}: {latencies}");
        latencies
    }

    /// Commits one event and waits until it arrives, at most `within`.
    async fn one(&mut self, database: &Database, what: &str, within: Duration) -> Duration {
        let mut connection = database.connection().await;
        let (id, committed) = self.publish(&mut connection).await;
        loop {
            let left = within.saturating_sub(committed.elapsed());
            let Some(received) = self.good.next(left).await else {
                panic!("{what}: a live event did not arrive within {within:?}");
            };
            let (arrived, at) = arrival(Some(received));
            if arrived == id {
                let took = at.saturating_duration_since(committed);
                eprintln!("{what}: {took:.1?}");
                return took;
            }
        }
    }
}

fn arrival(received: Option<pgoutbox::lab::receiver::Received>) -> (Uuid, Instant) {
    let received = received.expect("the receiver runs");
    (received.id.unwrap().parse().unwrap(), Instant::now())
}

/// Times from commit to receipt, in order.
#[derive(Debug)]
struct Latencies(Vec<Duration>);

impl Latencies {
    fn new(mut took: Vec<Duration>) -> Self {
        took.sort_unstable();
        Self(took)
    }

    fn at(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a few hundred"
        )]
        let at = ((self.0.len() - 1) as f64 * share).round() as usize;
        self.0[at]
    }

    fn p99(&self) -> Duration {
        self.at(0.99)
    }

    /// Asserts that none is longer than this: for the moment in which the bad ones are sent to first.
    #[track_caller]
    fn are_within(&self, limit: Duration) {
        assert!(self.at(1.0) <= limit, "not all within {limit:.1?}: {self}");
    }

    /// Asserts that these are about as good as those of the subscription alone.
    #[track_caller]
    fn are_like(&self, alone: &Self) {
        let limit = alone.p99() * 10 + Duration::from_millis(500);
        assert!(self.p99() <= limit, "p99 {:.1?} beside, at most {limit:.1?}; alone: {alone}", self.p99());
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (half, most) = (self.at(0.5), self.at(1.0));
        write!(f, "p50 {half:.1?}, p99 {:.1?}, most {most:.1?} of {}", self.p99(), self.0.len())
    }
}
