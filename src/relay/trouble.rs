//! Trouble of subscriptions that operators are told of: those that fail for too long are disabled, and
//! backlogs that are too old are announced. A crash here costs nothing: the database remembers.

use super::parts::{Base, Counted};
use crate::{
    delivery::SubscriptionId,
    store::{Backlog, Error, HealthReport, SubscriptionState},
};

/// Reports how the attempts of subscriptions with `retry.disable_after` went. The database decides, from what
/// all relays report, which are disabled.
pub(super) async fn judge(base: &Base, counted: &Counted) -> Result<(), Error> {
    let index = base.index.load_full();
    let reports: Vec<HealthReport> = counted
        .tallies
        .health()
        .into_iter()
        .filter_map(|(id, health)| {
            let disable_after = index.get(id)?.retry.disable_after?;
            Some(HealthReport {
                id,
                succeeded: health.succeeded,
                failing: health.failing,
                failed: health.failed,
                disable_after,
            })
        })
        .collect();
    if reports.is_empty() {
        return Ok(());
    }
    for (id, reason) in base.store.judge_failing(&reports).await? {
        let name = index.get(id).map_or("", |subscription| &subscription.row.name);
        base.telemetry.subscription_changed(name, SubscriptionState::Disabled, &reason);
    }
    Ok(())
}

/// Announces backlogs whose oldest event has been owed for longer than `relay.backlog_alert`.
pub(super) async fn alert(base: &Base, measured: &[Backlog]) -> Result<(), Error> {
    let Some(limit) = base.settings.backlog_alert else { return Ok(()) };
    let ages: Vec<(SubscriptionId, f64)> =
        measured.iter().filter_map(|one| Some((one.subscription_id, one.oldest_age?))).collect();
    base.store.note_backlogs(&ages, limit).await
}
