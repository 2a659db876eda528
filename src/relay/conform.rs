//! What is sent of an event: its payload checked by event types, brought to the version the subscription wants, transformed.
//! A crash here costs what one in deliver costs.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Shared;
use crate::{
    delivery::Delivery,
    event_type::Warning,
    sinks::Report,
    verdict::{Outcome, Reason},
};

/// Warnings of one event type are told so often.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// When warnings of each event type were told last.
#[derive(Debug, Default)]
pub(super) struct Told {
    at: Mutex<HashMap<i64, Instant>>,
}

impl Told {
    fn is_due(&self, id: i64, now: Instant) -> bool {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = at.get(&id).is_none_or(|last| now.saturating_duration_since(*last) >= TELL_EVERY);
        if due {
            at.insert(id, now);
        }
        due
    }

    /// Of other types nothing needs to be known.
    pub(super) fn keep_only(&self, wanted: impl Fn(i64) -> bool) {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| wanted(*id));
    }
}

/// What is sent in place of a delivery; of all deliveries of a subscription something else is, or of none.
///
/// # Errors
/// The report of an attempt that ends before anything is sent.
pub(super) fn outgoing<'d>(shared: &Shared, delivery: &'d Delivery) -> Result<Cow<'d, Delivery>, Report> {
    let rejected = |reason: Reason, why: String| Report::from(Outcome::Rejected { reason }).saying(why);
    let mut warnings = Vec::new();
    let wanted = delivery.subscription.row.schema_version;
    let prepared = shared.index.load().types().prepare(&delivery.event, wanted, &mut warnings);
    for Warning { id, cause, why } in warnings {
        shared.telemetry.schema_warned(&delivery.event, cause, &why, shared.types_told.is_due(id, Instant::now()));
    }
    let event = prepared.map_err(|refusal| rejected(refusal.reason, refusal.why))?;
    let transform_failed = |why: String| rejected(Reason::TransformFailed, why);
    if Arc::ptr_eq(&event, &delivery.event) {
        return delivery.outgoing().map_err(transform_failed);
    }
    let upcast = Delivery { event, ..delivery.clone() };
    let outgoing = upcast.outgoing().map_err(transform_failed)?.into_owned();
    Ok(Cow::Owned(outgoing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_of_a_type_are_told_once_a_minute() {
        let told = Told::default();
        let now = Instant::now();
        assert!(told.is_due(1, now) && told.is_due(2, now));
        assert!(!told.is_due(1, now + TELL_EVERY / 2));
        assert!(told.is_due(1, now + TELL_EVERY));
        told.keep_only(|id| id != 2);
        assert!(told.is_due(2, now), "a type that came back");
    }
}
