//! Which subscriptions this relay cannot use, and whether that is recorded. A crash here costs nothing: the
//! next load finds the same.
//!
//! Relays may disagree: one lacks a secret that another has. So each records a reason once for each version
//! of a row, and one that can use it overrules. When a relay ends, the others say again what they think.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Utc};

use crate::{
    delivery::SubscriptionId,
    store::{StateChange, SubscriptionRow, SubscriptionState},
    subscription::Subscription,
};

#[derive(Debug)]
struct Problem {
    reason: String,
    /// Value of `resumed_at`: every edit changes it.
    version: Option<DateTime<Utc>>,
    is_recorded: bool,
}

/// Subscriptions that this relay cannot use.
#[derive(Debug, Default)]
pub(super) struct Unusable {
    problems: HashMap<SubscriptionId, Problem>,
    /// Some state is not recorded: its row was locked.
    pub(super) is_behind: bool,
}

impl Unusable {
    pub(super) fn len(&self) -> usize {
        self.problems.len()
    }

    /// Notes what is wrong with a version of a row, if something is.
    pub(super) fn note(&mut self, row: &SubscriptionRow, problem: Option<String>) {
        let Some(reason) = problem else {
            self.problems.remove(&row.id);
            return;
        };
        let version = row.resumed_at;
        let is_recorded = self.problems.get(&row.id).is_some_and(|before| {
            before.is_recorded && (&before.reason, before.version) == (&reason, version)
        });
        self.problems.insert(row.id, Problem { reason, version, is_recorded });
    }

    pub(super) fn keep_only(&mut self, ids: &HashSet<SubscriptionId>) {
        self.problems.retain(|id, _| ids.contains(id));
    }

    /// A relay has ended, which may have been the one that could use them.
    pub(super) fn say_again(&mut self) {
        self.problems.values_mut().for_each(|problem| problem.is_recorded = false);
    }

    /// The states that are to be recorded.
    pub(super) fn states(
        &self,
        subscriptions: &BTreeMap<SubscriptionId, Arc<Subscription>>,
    ) -> Vec<StateChange> {
        let change = |row: &SubscriptionRow, to, reason| StateChange {
            id: row.id,
            from: row.state,
            to,
            reason,
            version: row.version(),
        };
        subscriptions
            .values()
            .filter_map(|one| match (self.problems.get(&one.row.id), one.row.state) {
                // A relay that can serve it overrules one that cannot.
                (None, SubscriptionState::Pending | SubscriptionState::Invalid) => {
                    Some(change(&one.row, SubscriptionState::Ok, None))
                }
                (Some(problem), state) if state.has_no_problem() && !problem.is_recorded => {
                    Some(change(&one.row, SubscriptionState::Invalid, Some(problem.reason.clone())))
                }
                _ => None,
            })
            .collect()
    }

    /// Notes which of these states were recorded.
    pub(super) fn recorded(&mut self, asked: usize, recorded: &HashSet<SubscriptionId>) {
        for id in recorded {
            if let Some(problem) = self.problems.get_mut(id) {
                problem.is_recorded = true;
            }
        }
        self.is_behind = recorded.len() < asked;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(state: SubscriptionState, version: i64) -> SubscriptionRow {
        let row = SubscriptionRow::new("one", &["**"], "webhook", serde_json::json!({}));
        SubscriptionRow { state, resumed_at: DateTime::from_timestamp(version, 0), ..row }
    }

    fn asked(unusable: &Unusable, row: &SubscriptionRow) -> Vec<SubscriptionState> {
        let registry = crate::sink::Registry::default();
        let subscription = Arc::new(Subscription::bind(row.clone(), &registry).0);
        unusable.states(&BTreeMap::from([(row.id, subscription)])).into_iter().map(|one| one.to).collect()
    }

    #[test]
    fn a_reason_is_recorded_once_for_each_version_of_a_row_and_again_when_a_relay_ends() {
        use SubscriptionState::{Invalid, Ok};
        let (mut unusable, id) = (Unusable::default(), HashSet::from([SubscriptionId::default()]));
        let why = || Some("no secret".to_owned());
        unusable.note(&row(Ok, 1), why());
        assert_eq!(asked(&unusable, &row(Ok, 1)), [Invalid]);
        unusable.recorded(1, &HashSet::new());
        assert!(unusable.is_behind, "its row was locked");
        assert_eq!(asked(&unusable, &row(Ok, 1)), [Invalid]);
        unusable.recorded(1, &id);
        assert!(!unusable.is_behind);
        unusable.note(&row(Ok, 1), why());
        assert_eq!(asked(&unusable, &row(Ok, 1)), [], "another relay can use it");
        unusable.note(&row(Ok, 2), why());
        assert_eq!(asked(&unusable, &row(Ok, 2)), [Invalid], "it was edited");
        unusable.recorded(1, &id);
        unusable.say_again();
        assert_eq!(asked(&unusable, &row(Ok, 2)), [Invalid]);
        unusable.note(&row(Invalid, 2), None);
        assert_eq!(asked(&unusable, &row(Invalid, 2)), [Ok]);
    }
}
