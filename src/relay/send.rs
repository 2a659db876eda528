//! One call of a sink.

use std::{panic::AssertUnwindSafe, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    attempted::{all, cut_off},
    crash,
    dispatch::Job,
};
use crate::{
    delivery::{Outcome, Reason},
    sink::{Outgoing, Report},
    subscription::Subscription,
};

/// No attempt may take longer, whatever its sink says.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(60);

/// Ends when one of their leases is lost.
pub(super) async fn any_lost(jobs: &[Job]) {
    let mut tokens: Vec<&CancellationToken> = Vec::new();
    for token in jobs.iter().map(|job| job.held.lease().lost()) {
        if tokens.last().is_none_or(|last| !std::ptr::eq(*last, token)) {
            tokens.push(token);
        }
    }
    match tokens.as_slice() {
        [] => std::future::pending().await,
        [one] => one.cancelled().await,
        several => {
            futures_util::future::select_all(several.iter().map(|token| Box::pin(token.cancelled()))).await;
        }
    }
}

/// The sink's attempt, with its deadline, its panics, and a report for each whatever it says.
pub(super) async fn send(subscription: &Subscription, deliveries: &[Outgoing]) -> Vec<Report> {
    let outlet = &subscription.outlet;
    let deadline = outlet.deadline().min(LONGEST_ATTEMPT);
    let retry = |reason| Report::from(Outcome::Retry { reason, after: None });
    crash::point(crash::Point::Sending);
    let answer =
        tokio::time::timeout(deadline, AssertUnwindSafe(outlet.send(deliveries)).catch_unwind()).await;
    crash::point(crash::Point::Answered);
    match answer {
        Ok(Ok(reports)) if reports.len() == deliveries.len() => reports,
        Ok(Ok(reports)) => {
            tracing::error!(
                sink = outlet.kind(),
                deliveries = deliveries.len(),
                reports = reports.len(),
                "a sink did not report on each delivery"
            );
            all(deliveries.len(), &retry(Reason::SinkBroken).ambiguous())
        }
        Ok(Err(_)) => all(deliveries.len(), &retry(Reason::SinkPanicked)),
        Err(_) => all(deliveries.len(), &cut_off(Reason::Timeout)),
    }
}
