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
    /// What cannot be judged here: running relays use these subscriptions, or their sinks belong to another
    /// program.
    pub elsewhere: Vec<Finding>,
}

/// Checks each subscription and its destination. Leaves nothing at the destination. `running`: the status of
/// subscriptions, if a relay runs. Where that finds a subscription good, a problem of this process alone is
/// none, such as a secret that is not set here.
pub async fn check_subscriptions(
    rows: Vec<SubscriptionRow>,
    sinks: &Registry,
    running: Option<&[Status]>,
) -> Findings {
    let checks = rows.into_iter().map(|row| {
        let status = running.and_then(|all| all.iter().find(|status| status.name == row.name)).cloned();
        check(row, sinks, status)
    });
    let mut checks = futures_util::stream::iter(checks).buffered(AT_ONCE);
    let mut findings = Findings::default();
    while let Some(found) = checks.next().await {
        match found {
            Some((finding, true)) => findings.elsewhere.push(finding),
            Some((finding, false)) => findings.problems.push(finding),
            None => {}
        }
    }
    findings
}

/// Returns what was found, and whether that cannot be judged here.
async fn check(row: SubscriptionRow, sinks: &Registry, status: Option<Status>) -> Option<(Finding, bool)> {
    let subject = format!("subscription {}", row.name);
    let finding = |problem| Finding { subject, problem };
    if matches!(row.state, SubscriptionState::Gone | SubscriptionState::Disabled) {
        let reason = row.state_reason.as_deref().unwrap_or("no reason is recorded");
        return Some((finding(format!("is {}: {reason}", row.state)), false));
    }
    let is_used = status.is_some() && row.state == SubscriptionState::Ok;
    let is_foreign = sinks.is_foreign(&row.sink);
    let (subscription, problem) = Subscription::bind(row, sinks);
    if let Some(problem) = problem {
        return Some((finding(problem), is_used || is_foreign));
    }
    let problem = subscription.outlet.check().await.err()?;
    let is_reached = status.is_some_and(|status| {
        status.breaker == BreakerState::Closed.code() && status.success_rate.is_some_and(|rate| rate > 0.0)
    });
    Some((finding(format!("its destination failed the check: {problem}")), is_used && is_reached))
}
