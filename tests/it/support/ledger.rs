//! The ledger checker: what publishers did and what sinks were sent, kept outside the database, and whether the two agree.
//! It knows nothing of the code under test and has its own matcher. Tested by hand-written histories in `ledger.rs` beside
//! the promises.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Instant,
};

use uuid::Uuid;

/// How a publisher's transaction ended, as far as the publisher knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Committed,
    Aborted,
    /// No answer to COMMIT: the log decides.
    Unknown,
}

/// One event as its publisher wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) id: Uuid,
    pub(crate) topic: String,
    pub(crate) organization: Option<String>,
    /// As PostgreSQL writes it.
    pub(crate) payload: String,
}

/// One transaction of a publisher. Events rolled back to a savepoint are listed under one of their own that aborted.
#[derive(Debug, Clone)]
pub(crate) struct Transaction {
    #[expect(dead_code, reason = "shown when a finding is printed")]
    pub(crate) seed: u64,
    pub(crate) events: Vec<Written>,
    /// `synchronous_commit` was on.
    pub(crate) synchronous: bool,
    /// When COMMIT was sent.
    pub(crate) committing: Instant,
    pub(crate) ended: Ended,
}

/// One request at a sink.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) event: Uuid,
    pub(crate) subscription: String,
    pub(crate) payload: String,
    pub(crate) arrived: Instant,
    /// The sink took it: its answer said so.
    pub(crate) took_effect: bool,
}

/// Something done to a relay that may cost copies: as many as it has permits. An ambiguous attempt is one of a single permit.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) kind: &'static str,
    pub(crate) permits: usize,
}

/// A subscription, and since when it is known to be there.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) name: String,
    pub(crate) topics: Vec<String>,
    pub(crate) organization: Option<String>,
    pub(crate) since: Instant,
}

/// Event and subscription.
pub(crate) type Pair = (Uuid, String);

/// What the database holds when all is over.
#[derive(Debug, Clone, Default)]
pub(crate) struct Afterwards {
    pub(crate) log: BTreeMap<Uuid, Written>,
    pub(crate) dead_letters: BTreeSet<Pair>,
    pub(crate) outstanding: BTreeSet<Pair>,
}

/// Everything recorded, in the order in which it was.
#[derive(Debug, Clone, Default)]
pub(crate) struct Journal {
    pub(crate) wishes: Vec<Wish>,
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) requests: Vec<Request>,
    pub(crate) faults: Vec<Fault>,
}

/// What does not agree. Empty but for `duplicated` where all is well.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Findings {
    /// Committed durably and not in the log, or aborted and there: the database's fault, not the relay's.
    pub(crate) database: BTreeSet<Uuid>,
    /// Owed, and neither sent, nor given up, nor outstanding.
    pub(crate) lost: BTreeSet<Pair>,
    /// Sent although not in the log, not wanted, or with another body.
    pub(crate) phantom: BTreeSet<Pair>,
    /// Owed and still outstanding.
    pub(crate) stuck: BTreeSet<Pair>,
    /// Copies beyond the first, with their number.
    pub(crate) duplicated: BTreeMap<Pair, usize>,
    /// How many copies the faults explain.
    pub(crate) duplicates_allowed: usize,
    /// What was checked.
    pub(crate) owed: usize,
    pub(crate) durable: usize,
    /// Committed without waiting for the disk, and gone in a crash.
    pub(crate) forgotten: usize,
}

impl Findings {
    pub(crate) fn duplicates(&self) -> usize {
        self.duplicated.values().sum()
    }

    /// The terms that are not as they should be.
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
    /// The beginning of each list: a broken relay loses thousands.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn head<T: Clone>(items: impl Iterator<Item = T>) -> Vec<T> {
            items.take(5).collect()
        }
        writeln!(
            f,
            "{} events in the log, {} pairs owed, {} forgotten by the database",
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

/// The manual's definition, as directly as it can be written.
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
        // An own id may be published again: one of its transactions decides that it is there.
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
