//! What verdicts mean for the order of keys.

use std::{collections::BTreeMap, time::Duration};

use super::{
    super::{
        attempted::{Attempted, unbegun},
        dispatch::{Committed, Fate, Passage},
        held::Held,
    },
    Settle,
};
use crate::{
    delivery::{Reason, SubscriptionId, Verdict},
    store::OnExhausted,
};

/// How long a subscription that is being halted sends nothing, until its relays have read that.
const HALTING: Duration = Duration::from_secs(30);
/// When a delivery is tried again whose subscription could not be halted.
const HALT_AGAIN: Duration = Duration::from_secs(10);

impl Settle {
    /// Pauses subscriptions that a dead letter halts, before it is written: if this relay dies in between,
    /// the delivery is made again after a resume. Where that fails, the delivery is tried again later.
    pub(super) async fn halt(&self, attempted: &[Attempted], verdicts: &mut [Verdict]) {
        let is_halted = |one: &Attempted| {
            one.job.delivery.subscription.is_ordered()
                && one.job.delivery.subscription.row.on_exhausted == OnExhausted::Halt
        };
        let mut halting: BTreeMap<SubscriptionId, String> = BTreeMap::new();
        for (one, verdict) in attempted.iter().zip(verdicts.iter()) {
            if let Verdict::DeadLetter { reason } = verdict
                && is_halted(one)
            {
                let delivery = &one.job.delivery;
                let event = delivery.event_id().map_or_else(String::new, |id| format!(" {id}"));
                let why = format!("halted: event{event} became a dead letter ({})", reason.code());
                halting.entry(delivery.subscription.row.id).or_insert(why);
            }
        }
        if halting.is_empty() {
            return;
        }
        let now = std::time::Instant::now();
        halting.keys().for_each(|id| self.sending.pauses.pause(*id, HALTING, now));
        let halting: Vec<(SubscriptionId, String)> = halting.into_iter().collect();
        let halted = self.base.store.halt_subscriptions(&halting).await.unwrap_or_else(|error| {
            self.base.telemetry.database_failed("settle", &error);
            Vec::new()
        });
        for (one, verdict) in attempted.iter().zip(verdicts.iter_mut()) {
            let is_dead = matches!(verdict, Verdict::DeadLetter { .. }) && is_halted(one);
            if is_dead && !halted.contains(&one.job.delivery.subscription.row.id) {
                *verdict = Verdict::RetryIn(HALT_AGAIN);
            }
        }
    }

    /// Tells the gates what is committed. Returns what does not begin now and is to be written.
    pub(super) fn go_on(&self, decided: &[(&Attempted, &Verdict)], counted: &[bool]) -> Vec<Attempted> {
        let committed: Vec<Committed> = decided
            .iter()
            .zip(counted)
            .filter(|((one, _), _)| one.job.passage != Passage::Free)
            .map(|((one, verdict), counted)| Committed {
                subscription: one.job.delivery.subscription.row.id,
                lane: one.job.lane.clone(),
                place: one.job.place,
                passage: one.job.passage,
                fate: fate(one, verdict, *counted),
            })
            .collect();
        if committed.is_empty() {
            return Vec::new();
        }
        let subscriptions: Vec<SubscriptionId> = committed.iter().map(|one| one.subscription).collect();
        let setbacks = self.sending.dispatch.committed(committed);
        for id in subscriptions {
            if self.sending.dispatch.wants_keys(id) {
                self.waiting.schedule.fall_behind(id);
            }
        }
        setbacks.0.into_iter().map(|job| unbegun(job, Reason::LeaseLost)).collect()
    }
}

fn fate(one: &Attempted, verdict: &Verdict, counted: bool) -> Fate {
    let subscription = &one.job.delivery.subscription;
    match verdict {
        _ if !counted => Fate::Lost,
        Verdict::DeadLetter { .. } if subscription.row.on_exhausted == OnExhausted::Park => Fate::Parked,
        Verdict::Settled | Verdict::DeadLetter { .. } | Verdict::Waits => Fate::Done,
        // A row stays one.
        Verdict::RetryIn(_) if one.counts || matches!(one.job.held, Held::Row(_)) => Fate::Retried,
        Verdict::RetryIn(_) | Verdict::SubscriptionGone => Fate::Returned,
    }
}
