//! Checks subscriptions: whether the sinks accept their rows, and whether their destinations answer.

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::{
    sink::Registry,
    store::{SubscriptionRow, SubscriptionState},
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

/// Checks each subscription and its destination. Leaves nothing at the destination.
pub async fn check_subscriptions(rows: Vec<SubscriptionRow>, sinks: &Registry) -> Vec<Finding> {
    let mut checks =
        futures_util::stream::iter(rows.into_iter().map(|row| check(row, sinks))).buffered(AT_ONCE);
    let mut findings = Vec::new();
    while let Some(finding) = checks.next().await {
        findings.extend(finding);
    }
    findings
}

async fn check(row: SubscriptionRow, sinks: &Registry) -> Option<Finding> {
    let subject = format!("subscription {}", row.name);
    let ended = matches!(row.state, SubscriptionState::Gone | SubscriptionState::Disabled).then(|| {
        format!("is {}: {}", row.state, row.state_reason.as_deref().unwrap_or("no reason is recorded"))
    });
    let (subscription, problem) = Subscription::bind(row, sinks);
    let problem = match problem.or(ended) {
        Some(problem) => problem,
        None => {
            let answer = subscription.outlet.check().await;
            answer.err().map(|problem| format!("its destination failed the check: {problem}"))?
        }
    };
    Some(Finding { subject, problem })
}
