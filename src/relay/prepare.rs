//! Makes what is sent of an event: checks its payload against event types, upcasts it to the version that the
//! subscription wants, and transforms it. A crash here costs what one in deliver costs.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::{dispatch::Job, held::Held, telemetry::Telemetry};
use crate::{
    delivery::{Outcome, Reason},
    event::{
        Event,
        types::{Refusal, RefusalKind, Types, Warning},
    },
    sink::{Lease, Occasion, Outgoing, Report},
};

/// Shortest time between two warnings about one event type.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// Time of the last warning about each event type.
#[derive(Debug, Default)]
pub(super) struct LastWarned {
    at: Mutex<HashMap<i64, Instant>>,
}

impl LastWarned {
    fn is_due(&self, id: i64, now: Instant) -> bool {
        let mut at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = at.get(&id).is_none_or(|last| now.saturating_duration_since(*last) >= WARN_EVERY);
        if due {
            at.insert(id, now);
        }
        due
    }

    /// Forgets the types that are not wanted.
    pub(super) fn keep_only(&self, wanted: impl Fn(i64) -> bool) {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).retain(|id, _| wanted(*id));
    }
}

/// What a sink gets of a delivery of this event.
///
/// # Errors
/// The report of an attempt that fails before anything is sent.
pub(super) fn outgoing(
    types: &Types,
    telemetry: &Telemetry,
    last_warned: &LastWarned,
    job: &Job,
    event: &Arc<Event>,
) -> Result<Outgoing, Report> {
    let delivery = &job.delivery;
    let rejected = |reason: Reason, why: String| Report::from(Outcome::Rejected { reason }).with_answer(why);
    let mut warnings = Vec::new();
    let subscription = &delivery.subscription;
    let prepared = types.prepare(event, subscription.row.schema_version, &mut warnings);
    for Warning { id, cause, why } in warnings {
        telemetry.schema_warned(event, cause, &why, last_warned.is_due(id, Instant::now()));
    }
    let event = prepared.map_err(|Refusal { kind, why }| match kind {
        RefusalKind::SchemaMismatch => rejected(Reason::SchemaMismatch, why),
        RefusalKind::UpcastFailed => rejected(Reason::UpcastFailed, why),
    })?;
    let outgoing = Outgoing {
        attempt: delivery.attempt,
        replay: delivery.replay,
        repeated: delivery.repeated,
        occasion: Some(Occasion { subscription: subscription.row.id, since: delivery.owed_since }),
        lease: Some(match &job.held {
            Held::Page(page, number) => Lease::of_pair(page.id, *number, page.lease.token()),
            Held::Row(row) => Lease::of_row(row.id, row.lease.token()),
        }),
        ..Outgoing::new(event, subscription.name.clone(), delivery.attempted_at)
    };
    subscription.shape(outgoing).map_err(|why| rejected(Reason::TransformFailed, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_warned_about_once_a_minute() {
        let last = LastWarned::default();
        let now = Instant::now();
        assert!(last.is_due(1, now) && last.is_due(2, now));
        assert!(!last.is_due(1, now + WARN_EVERY / 2));
        assert!(last.is_due(1, now + WARN_EVERY));
        last.keep_only(|id| id != 2);
        assert!(last.is_due(2, now), "a type that was forgotten");
    }
}
