//! Deliveries from claim to verdict, in logs, metrics and signals.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use super::{
    Signal, Telemetry, WARN_EVERY,
    metrics::{CauseLabels, ReasonLabels, SinkLabels, SubscriptionLabels},
};
use crate::{
    delivery::Reason,
    event::{Event, types::Cause},
    relay::delivery::Delivery,
    sink::Report,
};

impl Telemetry {
    /// Counts every one, and warns of the first after a report.
    pub(crate) fn filter_failed(&self, subscription: &str, event: &Event, why: &str, is_news: bool) {
        self.metrics
            .filter_errors
            .get_or_create(&SubscriptionLabels { subscription: subscription.to_owned() })
            .inc();
        if is_news {
            tracing::warn!(event.id = %event.id, subscription, why, "filter failed, event not sent");
        } else {
            tracing::debug!(event.id = %event.id, subscription, why, "filter failed, event not sent");
        }
        self.signal(|| Signal::FilterFailed { event: event.id, subscription: subscription.to_owned() });
    }

    /// Counts every one, and warns of the first after a report.
    pub(crate) fn schema_warned(&self, event: &Event, cause: Cause, why: &str, is_news: bool) {
        self.metrics.schema_warnings.get_or_create(&CauseLabels { cause: cause.code() }).inc();
        if is_news {
            tracing::warn!(
                event.id = %event.id,
                cause = cause.code(),
                why,
                "payload does not fit its event type, delivering it"
            );
        }
        self.signal(|| Signal::SchemaWarned { event: event.id });
    }

    pub(crate) fn claimed(&self, deliveries: usize, expired: usize) {
        self.metrics.deliveries_claimed.inc_by(deliveries as u64);
        self.metrics.leases_expired.inc_by(expired as u64);
        tracing::debug!(deliveries, expired, "claimed");
        self.signal(|| Signal::Claimed { deliveries });
    }

    pub(crate) fn taken_over(&self, pages: usize, deliveries: usize) {
        self.metrics.leases_expired.inc_by(deliveries as u64);
        tracing::info!(pages, deliveries, "took over deliveries of a relay that died");
    }

    pub(crate) fn held_measured(&self, ahead: usize, in_flight: u32, unsettled: u32) {
        self.metrics.leased_ahead.set(i64::try_from(ahead).unwrap_or(i64::MAX));
        self.metrics.in_flight.set(i64::from(in_flight));
        self.metrics.unsettled.set(i64::from(unsettled));
    }

    pub(crate) fn attempted(&self, delivery: &Delivery, report: &Report, took: Duration) {
        let sink = delivery.subscription.outlet.kind();
        self.outlets.count(&self.metrics, sink, &report.outcome, took.as_secs_f64());
        if delivery.repeated {
            self.metrics.deliveries_repeated.get_or_create(&SinkLabels { sink }).inc();
        }
        if let Some(reason) = report.outcome.reason() {
            self.metrics.attempt_failures.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
            tracing::debug!(
                event.id = delivery.event_id().map(tracing::field::display),
                subscription = delivery.subscription.row.name,
                attempt = delivery.attempt,
                reason = reason.code(),
                status = report.status,
                "attempt failed"
            );
        }
    }

    /// Counts every one, and warns once in a while.
    pub(crate) fn resources_lacked(&self, subscription: &str, lack: &str) {
        self.metrics.resources_lacked.inc();
        let mut warned = self.warned_of_resources.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_none_or(|then| then.elapsed() >= WARN_EVERY) {
            *warned = Some(Instant::now());
            tracing::warn!(subscription, lack, "cannot send now, deliveries wait and no attempt is counted");
        }
        self.signal(|| Signal::ResourcesLacked { subscription: subscription.to_owned() });
    }

    pub(crate) fn settled(&self, delivery: &Delivery, age: Duration) {
        self.metrics.delivery_seconds.observe(age.as_secs_f64());
        self.signal_settled(delivery, "settled");
    }

    pub(crate) fn superseded(&self, delivery: &Delivery) {
        self.metrics.superseded.inc();
        self.signal_settled(delivery, "superseded");
    }

    pub(crate) fn retry_scheduled(&self, delivery: &Delivery, wait: Duration) {
        tracing::debug!(
            event.id = delivery.event_id().map(tracing::field::display),
            subscription = delivery.subscription.row.name,
            attempt = delivery.attempt,
            wait_seconds = wait.as_secs_f64(),
            "retry scheduled"
        );
        self.signal_settled(delivery, "retry");
    }

    pub(crate) fn dead_lettered(&self, delivery: &Delivery, reason: Reason) {
        self.metrics.dead_letters.get_or_create(&ReasonLabels { reason: reason.code() }).inc();
        tracing::warn!(
            event.id = delivery.event_id().map(tracing::field::display),
            subscription = delivery.subscription.row.name,
            attempt = delivery.attempt,
            reason = reason.code(),
            "dead letter"
        );
        self.signal_settled(delivery, "dead_letter");
    }

    pub(crate) fn held(&self, delivery: &Delivery) {
        self.signal_settled(delivery, "gone");
    }

    pub(crate) fn stale_verdict(&self, delivery: &Delivery) {
        self.metrics.stale_verdicts.inc();
        tracing::warn!(
            event.id = delivery.event_id().map(tracing::field::display),
            subscription = delivery.subscription.row.name,
            attempt = delivery.attempt,
            "the lease was lost before the verdict; the destination may get this event again"
        );
        self.signal_settled(delivery, "stale");
    }

    fn signal_settled(&self, delivery: &Delivery, verdict: &'static str) {
        self.signal(|| Signal::Settled {
            event: delivery.event_id(),
            subscription: delivery.subscription.row.name.clone(),
            verdict,
        });
    }
}
