//! Records what the shop committed and rolled back and what each receiver got, and compares them. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use uuid::Uuid;

/// Most recent arrivals that are shown.
const SHOWN: usize = 6;

/// A subscription of the demo. Lists its topics without patterns, to check the relay's matching
/// independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) name: &'static str,
    /// Pattern for `outbox.subscribe`.
    pub(super) pattern: &'static str,
    /// Topics of the shop that the pattern matches.
    pub(super) topics: &'static [&'static str],
}

pub(super) const PLACED: &str = "shop.order.placed";
pub(super) const PAID: &str = "shop.order.paid";
pub(super) const REFUNDED: &str = "shop.order.refunded";

pub(super) const MAIL: Plan =
    Plan { name: "mail", pattern: "shop.order.*", topics: &[PLACED, PAID, REFUNDED] };
pub(super) const WAREHOUSE: Plan =
    Plan { name: "warehouse", pattern: "shop.order.placed", topics: &[PLACED] };
pub(super) const ACCOUNTING: Plan =
    Plan { name: "accounting", pattern: "shop.order.refunded", topics: &[REFUNDED] };
pub(super) const PLANS: [Plan; 3] = [MAIL, WAREHOUSE, ACCOUNTING];

/// A request that a receiver got.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    pub(super) subscription: &'static str,
    /// Value of `webhook-id`.
    pub(super) id: String,
    pub(super) topic: String,
    /// Whether the signature was valid; none if it was not checked.
    pub(super) verified: Option<bool>,
    pub(super) answered: u16,
}

impl Arrival {
    fn accepted(&self) -> bool {
        (200..300).contains(&self.answered)
    }
}

/// Requests that the receivers of a subscription got.
#[derive(Debug, Clone, Default)]
struct Arrivals {
    accepted: BTreeMap<String, u32>,
    refused: u32,
    unverified: u32,
}

/// Events of the shop and requests of the receivers.
#[derive(Debug, Clone, Default)]
pub(super) struct Ledger {
    committed: BTreeMap<Uuid, &'static str>,
    rolled_back: BTreeSet<Uuid>,
    arrivals: BTreeMap<&'static str, Arrivals>,
    latest: VecDeque<Arrival>,
    /// Last action of the shop.
    pub(super) last_action: String,
}

impl Ledger {
    pub(super) fn commit(&mut self, id: Uuid, topic: &'static str) {
        self.committed.insert(id, topic);
    }

    pub(super) fn roll_back(&mut self, id: Uuid) {
        self.rolled_back.insert(id);
    }

    pub(super) fn arrive(&mut self, arrival: Arrival) {
        let arrivals = self.arrivals.entry(arrival.subscription).or_default();
        if arrival.accepted() {
            *arrivals.accepted.entry(arrival.id.clone()).or_default() += 1;
        } else {
            arrivals.refused += 1;
        }
        arrivals.unverified += u32::from(arrival.verified != Some(true));
        self.latest.push_front(arrival);
        self.latest.truncate(SHOWN);
    }

    pub(super) fn committed(&self) -> &BTreeMap<Uuid, &'static str> {
        &self.committed
    }

    pub(super) fn rolled_back(&self) -> usize {
        self.rolled_back.len()
    }

    /// Recent arrivals, newest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Arrival> {
        self.latest.iter()
    }

    /// Number of events that the subscription's receivers accepted.
    pub(super) fn delivered(&self, plan: Plan) -> usize {
        self.arrivals.get(plan.name).map_or(0, |arrivals| arrivals.accepted.len())
    }

    /// Number of requests that the subscription's receivers answered with an error.
    pub(super) fn refused(&self, plan: Plan) -> u32 {
        self.arrivals.get(plan.name).map_or(0, |arrivals| arrivals.refused)
    }

    /// Number of events accepted more than once, which at-least-once delivery allows.
    pub(super) fn repeated(&self) -> usize {
        self.arrivals
            .values()
            .flat_map(|arrivals| arrivals.accepted.values())
            .filter(|times| **times > 1)
            .count()
    }

    fn expected(&self, plan: Plan) -> BTreeSet<String> {
        self.committed
            .iter()
            .filter(|(_, topic)| plan.topics.contains(topic))
            .map(|(id, _)| id.to_string())
            .collect()
    }

    /// Whether the subscription's receivers accepted all events for it.
    pub(super) fn has_all(&self, plan: Plan) -> bool {
        self.missing(plan).is_empty()
    }

    fn missing(&self, plan: Plan) -> Vec<String> {
        let accepted = self.arrivals.get(plan.name).map(|arrivals| &arrivals.accepted);
        self.expected(plan)
            .into_iter()
            .filter(|id| !accepted.is_some_and(|accepted| accepted.contains_key(id)))
            .collect()
    }

    /// All deviations from the plan.
    pub(super) fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        let rolled_back: BTreeSet<String> = self.rolled_back.iter().map(Uuid::to_string).collect();
        for plan in PLANS {
            let mut report = |what: &str, ids: Vec<String>| {
                if let Some(first) = ids.first() {
                    findings.push(format!("{}: {} {what}, such as {first}", plan.name, ids.len()));
                }
            };
            report("committed events never arrived", self.missing(plan));
            let Some(arrivals) = self.arrivals.get(plan.name) else { continue };
            let expected = self.expected(plan);
            let (never_committed, not_wanted) = arrivals
                .accepted
                .keys()
                .filter(|id| !expected.contains(*id))
                .cloned()
                .partition(|id| rolled_back.contains(id));
            report("events of rolled-back transactions arrived", never_committed);
            report("events arrived that it does not want", not_wanted);
            if arrivals.unverified > 0 {
                findings.push(format!(
                    "{}: {} requests without a valid signature",
                    plan.name, arrivals.unverified
                ));
            }
        }
        findings
    }

    /// The figures as text.
    pub(super) fn summary(&self) -> String {
        let mut text = format!(
            "{} events committed with their orders, {} rolled back; {} deliveries repeated",
            self.committed.len(),
            self.rolled_back.len(),
            self.repeated()
        );
        for plan in PLANS {
            let (name, delivered, expected, refused) =
                (plan.name, self.delivered(plan), self.expected(plan).len(), self.refused(plan));
            text.push_str(&format!(
                "\n  {name:<11} {delivered:>4} of {expected:>4} delivered, {refused} requests refused before"
            ));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(plan: Plan, id: Uuid, answered: u16) -> Arrival {
        Arrival {
            subscription: plan.name,
            id: id.to_string(),
            topic: PAID.to_owned(),
            verified: Some(true),
            answered,
        }
    }

    fn id(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    #[test]
    fn deliveries_as_planned_are_no_finding_even_if_refused_at_first_or_repeated() {
        let mut ledger = Ledger::default();
        ledger.commit(id(1), PAID);
        ledger.roll_back(id(2));
        assert!(!ledger.has_all(MAIL) && ledger.has_all(WAREHOUSE));
        for answered in [500, 200, 200] {
            ledger.arrive(arrival(MAIL, id(1), answered));
        }
        assert_eq!(ledger.findings(), Vec::<String>::new());
        assert_eq!((ledger.delivered(MAIL), ledger.refused(MAIL), ledger.repeated()), (1, 1, 1));
    }

    #[test]
    fn missing_rolled_back_unexpected_and_unsigned_events_are_found() {
        let mut ledger = Ledger::default();
        ledger.commit(id(1), PAID);
        ledger.roll_back(id(2));
        ledger.arrive(arrival(MAIL, id(2), 200));
        ledger.arrive(Arrival { verified: None, ..arrival(WAREHOUSE, id(1), 200) });
        let findings = ledger.findings().join("\n");
        for expected in [
            "mail: 1 committed events never arrived",
            "mail: 1 events of rolled-back transactions arrived",
            "warehouse: 1 events arrived that it does not want",
            "warehouse: 1 requests without a valid signature",
        ] {
            assert!(findings.contains(expected), "{expected:?} is not in:\n{findings}");
        }
    }
}
