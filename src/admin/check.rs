//! Whether subscriptions can be served as they are written: by these sinks, and by destinations that answer.

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::{
    sink::Registry,
    store::{SubscriptionRow, SubscriptionState},
    subscription::Subscription,
};

/// Destinations asked at once.
const AT_ONCE: usize = 16;

/// Something that a person must fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about, such as `subscription shop-orders`.
    pub subject: String,
    /// What is wrong, and where that helps, what to do.
    pub problem: String,
}

/// Checks each subscription and asks its destination, leaving nothing there.
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
            answer.err().map(|problem| format!("its destination does not answer as it should: {problem}"))?
        }
    };
    Some(Finding { subject, problem })
}
