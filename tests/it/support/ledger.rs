//! The ledger checker: records actions of publishers and requests at sinks outside the database, and compares
//! them. It uses no code under test and has its own matcher. `tests/it/ledger.rs` tests it with hand-written
//! histories.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Instant,
};

use uuid::Uuid;

/// End of a transaction, as far as the publisher knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Committed,
    Aborted,
    /// There was no answer to COMMIT: the log decides.
    Unknown,
}

/// An event as its publisher wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) id: Uuid,
    pub(crate) topic: String,
    pub(crate) organization: Option<String>,
    /// Payload as PostgreSQL writes it.
    pub(crate) payload: String,
}

/// A transaction of a publisher. Events rolled back to a savepoint are recorded as a separate, aborted
/// transaction.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    #[expect(dead_code, reason = "shown when a finding is printed")]
    pub(crate) seed: u64,
    pub(crate) events: Vec<Written>,
    /// Whether `synchronous_commit` was on.
    pub(crate) synchronous: bool,
    /// Time when COMMIT was sent.
    pub(crate) committing: Instant,
    pub(crate) ended: Ended,
}

/// A request at a sink.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) event: Uuid,
    pub(crate) subscription: String,
    pub(crate) payload: String,
    pub(crate) arrived: Instant,
    /// Whether the sink reported success.
    pub(crate) took_effect: bool,
}

/// A fault of a relay that may cause as many duplicates as permits. An ambiguous attempt is a fault of one
/// permit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: &'static str,
    pub(crate) permits: usize,
}

/// A subscription, and the time when it was known to exist.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) name: String,
    pub(crate) topics: Vec<String>,
    pub(crate) organization: Option<String>,
    pub(crate) since: Instant,
}

/// An event and a subscription.
pub(crate) type Pair = (Uuid, String);

/// The state of the database at the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Afterwards {
    pub(crate) log: BTreeMap<Uuid, Written>,
    pub(crate) dead_letters: BTreeSet<Pair>,
    pub(crate) outstanding: BTreeSet<Pair>,
}

/// Everything recorded, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) wishes: Vec<Wish>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) requests: Vec<Request>,
    pub(crate) faults: Vec<Fault>,
}

/// The differences. Without defects only `duplicated` may have entries.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Events committed durably but not in the log, or aborted but in the log: defects of the database.
    pub(crate) database: BTreeSet<Uuid>,
    /// Deliveries that are neither sent, given up nor pending.
    pub(crate) lost: BTreeSet<Pair>,
    /// Requests for events that are not in the log or do not match, or with another body.
    pub(crate) phantom: BTreeSet<Pair>,
    /// Deliveries that are still pending.
    pub(crate) stuck: BTreeSet<Pair>,
    /// Deliveries with duplicates, and their number.
    pub(crate) duplicated: BTreeMap<Pair, usize>,
    /// Number of duplicates that the faults explain.
    pub(crate) duplicates_allowed: usize,
    /// Numbers of checked items.
    pub(crate) owed: usize,
    pub(crate) durable: usize,
    /// Events that were committed asynchronously and lost in a crash.
    pub(crate) forgotten: usize,
}

impl Findings {
    pub(crate) fn duplicates(&self) -> usize {
        self.duplicated.values().sum()
    }

    /// Names of the kinds of differences found.
    pub(crate) fn violated(&self) -> Vec<&'static str> {
        let terms = [
            ("database", !self.database.is_empty()),
            ("lost", !self.lost.is_empty()),
            ("phantom", !self.phantom.is_empty()),
            ("stuck", !self.stuck.is_empty()),
            ("duplicated", self.duplicates() > self.duplicates_allowed),
        ];
        terms.into_iter().filter(|(_, violated)| *violated).map(|(term, _)| term).collect()
    }
}

impl fmt::Debug for Findings {
    /// Prints the beginning of each list: a broken relay may lose thousands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn head<T: Clone>(items: impl Iterator<Item = T>) -> Vec<T> {
            items.take(5).collect()
        }
        writeln!(
            f,
            "{} events in the log, {} deliveries expected, {} events lost by the database",
            self.durable, self.owed, self.forgotten
        )?;
        writeln!(f, "database {}: {:?}", self.database.len(), head(self.database.iter()))?;
        writeln!(f, "lost {}: {:?}", self.lost.len(), head(self.lost.iter()))?;
        writeln!(f, "phantom {}: {:?}", self.phantom.len(), head(self.phantom.iter()))?;
        writeln!(f, "stuck {}: {:?}", self.stuck.len(), head(self.stuck.iter()))?;
        write!(
            f,
            "duplicated {} of {} allowed: {:?}",
            self.duplicates(),
            self.duplicates_allowed,
            head(self.duplicated.iter())
        )
    }
}

/// The manual's definition of a match, written as directly as possible.
fn matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["**", rest @ ..], _) => {
            matches(rest, topic) || topic.split_first().is_some_and(|(_, tail)| matches(pattern, tail))
        }
        ([segment, rest @ ..], [first, tail @ ..]) => {
            segment.strip_suffix('*').map_or(segment == first, |prefix| first.starts_with(prefix))
                && matches(rest, tail)
        }
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}

impl Wish {
    fn wants(&self, event: &Written) -> bool {
        let tenant = self.organization.is_none() || self.organization == event.organization;
        let topic: Vec<&str> = event.topic.split('.').collect();
        tenant && self.topics.iter().any(|pattern| matches(&pattern.split('.').collect::<Vec<_>>(), &topic))
    }
}

impl Journal {
    /// Compares what was recorded with what the database holds.
    pub(crate) fn check(&self, after: &Afterwards) -> Findings {
        let mut findings = Findings { durable: after.log.len(), ..Findings::default() };
        findings.duplicates_allowed = self.faults.iter().map(|fault| fault.permits).sum();

        let mut written: BTreeMap<Uuid, &Written> = BTreeMap::new();
        let mut owed: BTreeSet<Pair> = BTreeSet::new();
        // A given id may be published several times; it is in the log if one of the transactions
        // committed.
        let mut kept: BTreeSet<Uuid> = BTreeSet::new();
        for transaction in &self.transactions {
            for event in &transaction.events {
                written.insert(event.id, event);
                let durable = after.log.contains_key(&event.id);
                match transaction.ended {
                    Ended::Committed if !durable && transaction.synchronous => {
                        _ = findings.database.insert(event.id)
                    }
                    Ended::Committed if !durable => findings.forgotten += 1,
                    Ended::Committed | Ended::Unknown => _ = kept.insert(event.id),
                    Ended::Aborted => {}
                }
                if durable && transaction.ended != Ended::Aborted {
                    let since = |wish: &&Wish| wish.since <= transaction.committing && wish.wants(event);
                    owed.extend(self.wishes.iter().filter(since).map(|wish| (event.id, wish.name.clone())));
                }
            }
        }
        findings
            .database
            .extend(after.log.keys().filter(|id| written.contains_key(id) && !kept.contains(id)));
        findings.owed = owed.len();

        let mut effects: BTreeMap<Pair, usize> = BTreeMap::new();
        for request in &self.requests {
            let pair = (request.event, request.subscription.clone());
            let expected = written.get(&request.event);
            let real = after.log.get(&request.event).is_some_and(|logged| {
                let wanted =
                    self.wishes.iter().any(|wish| wish.name == request.subscription && wish.wants(logged));
                wanted
                    && expected.is_none_or(|written| **written == *logged)
                    && request.payload == logged.payload
            });
            if !real {
                findings.phantom.insert(pair.clone());
            }
            *effects.entry(pair).or_default() += usize::from(request.took_effect);
        }
        findings.duplicated = effects
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(pair, count)| (pair.clone(), count - 1))
            .collect();
        for pair in owed {
            if after.outstanding.contains(&pair) {
                findings.stuck.insert(pair);
            } else if !after.dead_letters.contains(&pair)
                && effects.get(&pair).is_none_or(|count| *count == 0)
            {
                findings.lost.insert(pair);
            }
        }
        findings
    }
}
