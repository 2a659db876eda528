//! The journal of one test, shared by its publishers and sinks, and a sink that writes it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgoutbox::{
    delivery::Outcome,
    sink::{Outgoing, Problem, Report, Sink},
};
use sqlx::PgPool;
use tokio::{sync::Notify, time::timeout};
use uuid::Uuid;

use super::{
    Database,
    ledger::{Afterwards, Ended, Fault, Findings, Journal, Request, Transaction, Wish, Written},
};

/// After the last fault a delivery ends at least so often, however slow the machine is.
const LONGEST_STANDSTILL: Duration = Duration::from_secs(20);
/// Deadline of all that is left then.
const HEALED_WITHIN: Duration = Duration::from_secs(120);

/// Waits, in tests that need a delay.
pub(crate) async fn pause(length: Duration) {
    let _ = timeout(length, std::future::pending::<()>()).await;
}

/// How what is left after the last fault gets less.
#[derive(Debug)]
pub(crate) struct Healing {
    began: Instant,
    least: usize,
    since: Instant,
    /// The longest time in which nothing got less.
    pub(crate) standstill: Duration,
}

impl Healing {
    pub(crate) fn begin() -> Self {
        let now = Instant::now();
        Self { began: now, least: usize::MAX, since: now, standstill: Duration::ZERO }
    }

    /// Whether it goes on as it should, when so much is left.
    pub(crate) fn goes_on(&mut self, left: usize) -> bool {
        self.standstill = self.standstill.max(self.since.elapsed());
        if left < self.least {
            (self.least, self.since) = (left, Instant::now());
        }
        self.since.elapsed() < LONGEST_STANDSTILL && self.began.elapsed() < HEALED_WITHIN
    }
}

/// The journal of one test.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books {
    journal: Arc<Mutex<Journal>>,
    changed: Arc<Notify>,
}

impl Books {
    /// Subscribes and records the subscription.
    pub(crate) async fn subscribe(
        &self,
        database: &Database,
        name: &str,
        topics: &[&str],
        organization: Option<&str>,
    ) {
        self.subscribe_to(database, name, topics, organization, LedgerSink::KIND, serde_json::json!({}))
            .await;
    }

    /// Subscribes with another sink and records it.
    pub(crate) async fn subscribe_to(
        &self,
        database: &Database,
        name: &str,
        topics: &[&str],
        organization: Option<&str>,
        sink: &str,
        config: serde_json::Value,
    ) {
        let topics: Vec<String> = topics.iter().map(|topic| (*topic).to_owned()).collect();
        sqlx::query(
            "select outbox.subscribe($1, $2, $3, $4, organization => $5, \
             retry => '{\"schedule\": [\"500ms\", \"1s\", \"1s\", \"1s\", \"1s\", \"1s\"]}')",
        )
        .bind(name)
        .bind(&topics)
        .bind(sink)
        .bind(config)
        .bind(organization)
        .execute(&database.pool)
        .await
        .unwrap();
        let organization = organization.map(str::to_owned);
        self.journal.lock().unwrap().wishes.push(Wish {
            name: name.to_owned(),
            topics,
            organization,
            since: Instant::now(),
        });
    }

    /// Subscribes with all kinds of topics: all, patterns, tenants, none.
    pub(crate) async fn subscribe_variously(&self, database: &Database) {
        for (name, topics, organization) in [
            ("everything", &["**"][..], None),
            ("orders", &["shop.orders.*"], None),
            ("created", &["shop.**.create", "bank.*.cre*"], None),
            ("acme", &["**"], Some("acme")),
            ("globex-shop", &["shop.**"], Some("globex")),
            ("nothing", &["no.such.topic"], None),
        ] {
            self.subscribe(database, name, topics, organization).await;
        }
    }

    pub(crate) fn transaction(&self, transaction: Transaction) {
        self.journal.lock().unwrap().transactions.push(transaction);
    }

    pub(crate) fn request(&self, request: Request) {
        self.journal.lock().unwrap().requests.push(request);
        self.changed.notify_waiters();
    }

    pub(crate) fn fault(&self, kind: &'static str, permits: usize) {
        self.journal.lock().unwrap().faults.push(Fault { kind, permits });
    }

    pub(crate) fn journal(&self) -> Journal {
        self.journal.lock().unwrap().clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.journal.lock().unwrap().requests.len()
    }

    /// Publishes one event in its own transaction.
    pub(crate) async fn publish(&self, pool: &PgPool, topic: &str) -> Uuid {
        let event = Written {
            id: Uuid::new_v4(),
            topic: topic.to_owned(),
            organization: None,
            payload: "{\"n\": 1}".to_owned(),
        };
        let committing = Instant::now();
        sqlx::query("insert into outbox.events (id, topic, payload) values ($1, $2, $3::text::jsonb)")
            .bind(event.id)
            .bind(&event.topic)
            .bind(&event.payload)
            .execute(pool)
            .await
            .unwrap();
        let id = event.id;
        self.transaction(Transaction {
            seed: 0,
            events: vec![event],
            synchronous: true,
            committing,
            ended: Ended::Committed,
        });
        id
    }

    /// Waits until this many requests came, at most `within`.
    pub(crate) async fn wait_for(&self, count: usize, within: Duration) {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if self.requests() >= count {
                    return;
                }
                changed.await;
            }
        };
        assert!(
            timeout(within, waiting).await.is_ok(),
            "{} of {count} requests within {within:?}",
            self.requests()
        );
    }

    /// Compares the journal with the database.
    pub(crate) async fn check(&self, database: &Database) -> Findings {
        let after = afterwards(&database.pool).await;
        self.journal().check(&after)
    }

    /// Waits until everything is sent and settled, while relays run.
    pub(crate) async fn healed(&self, database: &Database) {
        let mut healing = Healing::begin();
        let mut looks = tokio::time::interval(Duration::from_millis(200));
        loop {
            looks.tick().await;
            let findings = self.check(database).await;
            let left = findings.lost.len() + findings.stuck.len();
            if left == 0 {
                return;
            }
            assert!(healing.goes_on(left), "{healing:?}: {findings:?}\n{}", database.rows_at_hand().await);
        }
    }

    /// Asserts that journal and database agree, after all relays have stopped.
    pub(crate) async fn balance(&self, database: &Database, seed: u64) -> Findings {
        let findings = self.check(database).await;
        let faults: Vec<_> =
            self.journal().faults.iter().map(|fault| format!("{} {}", fault.kind, fault.permits)).collect();
        eprintln!("seed {seed}: {findings:?}; faults: {faults:?}");
        assert!(
            findings.violated().is_empty(),
            "seed {seed}: {:?} {findings:?}\n{}",
            findings.violated(),
            database.rows_at_hand().await
        );
        findings
    }
}

/// Reads the state of the database with plain queries.
async fn afterwards(pool: &PgPool) -> Afterwards {
    let log: Vec<(Uuid, String, Option<String>, String)> = sqlx::query_as(
        "select id, topic, organization, payload::text from outbox.events \
             where not starts_with(topic, 'outbox.')",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let dead: Vec<(Uuid, String)> = sqlx::query_as("select event_id, subscription from outbox.dead_letters")
        .fetch_all(pool)
        .await
        .unwrap();
    let outstanding: Vec<(Uuid, String)> = sqlx::query_as(
        "select event.id, subscription.name \
            from outbox.owed as delivery join outbox.events as event using (position) \
         join outbox.subscriptions as subscription on subscription.id = delivery.subscription_id",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let log: BTreeMap<Uuid, Written> = log
        .into_iter()
        .map(|(id, topic, organization, payload)| (id, Written { id, topic, organization, payload }))
        .collect();
    Afterwards {
        log,
        dead_letters: dead.into_iter().collect::<BTreeSet<_>>(),
        outstanding: outstanding.into_iter().collect(),
    }
}

/// A sink that records every attempt and reports success, optionally after a delay.
#[derive(Debug, Clone)]
pub(crate) struct LedgerSink {
    pub(crate) books: Books,
    pub(crate) takes: Duration,
    /// While it is locked exclusively, attempts wait before they report.
    pub(crate) gate: Arc<tokio::sync::RwLock<()>>,
}

impl LedgerSink {
    pub(crate) fn new(books: &Books) -> Self {
        Self { books: books.clone(), takes: Duration::ZERO, gate: Arc::default() }
    }
}

impl Sink for LedgerSink {
    const KIND: &'static str = "ledger";
    type Target = ();

    fn target(&self, _: &serde_json::Value) -> Result<(), Problem> {
        Ok(())
    }

    fn destination(&self, (): &()) -> Option<String> {
        None
    }

    async fn send(&self, (): &(), delivery: &Outgoing) -> Report {
        self.books.request(Request {
            event: delivery.event.id,
            subscription: delivery.subscription.to_string(),
            payload: delivery.event.payload.clone(),
            arrived: Instant::now(),
            took_effect: true,
        });
        if !self.takes.is_zero() {
            pause(self.takes).await;
        }
        let _open = self.gate.read().await;
        Outcome::Delivered.into()
    }

    fn deadline(&self, (): &()) -> Duration {
        Duration::from_secs(30)
    }
}
