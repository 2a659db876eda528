//! Checks subscriptions: whether the sinks accept their rows, and whether their destinations answer.

use futures_util::StreamExt as _;
use serde::Serialize;

use super::Status;
use crate::{
    sink::Registry,
    store::{BreakerState, SubscriptionRow, SubscriptionState},
    subscription::Subscription,
};

/// Destinations checked at once.
const AT_ONCE: usize = 16;

/// A problem that an operator must fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Where the problem is, such as `subscription shop-orders`.
    pub subject: String,
    /// What is wrong and, if known, how to fix it.
    pub problem: String,
}

/// What a check of subscriptions found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Problems that an operator must fix.
    pub problems: Vec<Finding>,
    /// What this process cannot judge: the problem, and why it is perhaps none.
    pub unjudged: Vec<Finding>,
}

/// What is known beyond this process.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// Status of subscriptions, if a relay runs.
    pub running: Option<Vec<Status>>,
    /// Whether this process has the configuration of a relay. If so, what it lacks is a problem, even if a
    /// running relay has it: the next one may lack it too.
    pub is_like_a_relay: bool,
}

enum Found {
    Nothing,
    Problem(Finding),
    Unjudged(Finding),
}

/// Checks each subscription and its destination. Leaves nothing at the destination.
pub async fn check_subscriptions(
    rows: Vec<SubscriptionRow>,
    sinks: &Registry,
    elsewhere: &Elsewhere,
) -> Findings {
    let mut checks = futures_util::stream::iter(rows.into_iter().map(|row| check(row, sinks, elsewhere)))
        .buffered(AT_ONCE);
    let mut findings = Findings::default();
    while let Some(found) = checks.next().await {
        match found {
            Found::Nothing => {}
            Found::Problem(finding) => findings.problems.push(finding),
            Found::Unjudged(finding) => findings.unjudged.push(finding),
        }
    }
    findings
}

async fn check(row: SubscriptionRow, sinks: &Registry, elsewhere: &Elsewhere) -> Found {
    let subject = format!("subscription {}", row.name);
    let finding = |problem| Finding { subject: subject.clone(), problem };
    let reason = row.state_reason.clone().unwrap_or_else(|| "no reason is recorded".to_owned());
    if matches!(row.state, SubscriptionState::Gone | SubscriptionState::Disabled) {
        return Found::Problem(finding(format!("is {}: {reason}", row.state)));
    }
    let status = elsewhere.running.as_ref().and_then(|all| all.iter().find(|one| one.name == row.name));
    let status = status.filter(|_| row.state == SubscriptionState::Ok);
    let is_invalid = row.state == SubscriptionState::Invalid;
    // The next relay of this configuration need not have a sink of another program.
    let is_excused = !elsewhere.is_like_a_relay || sinks.is_foreign(&row.sink);
    let (subscription, problem) = Subscription::bind(row, sinks);
    if is_invalid {
        let problem = problem.unwrap_or_else(|| format!("a relay cannot use it: {reason}"));
        return Found::Problem(finding(problem));
    }
    if let Some(problem) = problem {
        return if status.is_some() && is_excused {
            Found::Unjudged(finding(format!(
                "a running relay can use it, and this process cannot: {problem}"
            )))
        } else {
            Found::Problem(finding(problem))
        };
    }
    let Err(problem) = subscription.outlet.check().await else { return Found::Nothing };
    let is_reached = status.is_some_and(|status| {
        status.breaker == BreakerState::Closed.code() && status.success_rate == Some(1.0)
    });
    if is_reached && !elsewhere.is_like_a_relay {
        Found::Unjudged(finding(format!("a running relay reaches its destination, and not this: {problem}")))
    } else {
        Found::Problem(finding(format!("its destination failed the check: {problem}")))
    }
}
