//! Deliveries to sinks that take several at once gather here: a queue for each subscription, in the order of the log. While as
//! many batches are under way as the sink wants, the next ones grow: batches are large under load, and nothing waits without.
//!
//! What waits here holds a permit and a lease like what is in one. A crash costs nothing more than that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::delivery::Delivery;
use super::permits::Permit;
use crate::sink::Batch;

/// A delivery in one, or waiting for its batch.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) delivery: Delivery,
    pub(super) permit: Permit,
}

/// All queues, by subscription.
#[derive(Debug, Default)]
pub(super) struct Batcher {
    queues: Mutex<HashMap<i64, Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<InFlight>,
    /// Since when the first one waits.
    since: Option<Instant>,
    /// Tasks that send its batches, and how many of them have a batch in one.
    senders: usize,
    sending: usize,
    /// Rings when a delivery joins.
    joined: Arc<Notify>,
}

impl Batcher {
    fn queues(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Queue>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery at the end of its queue. Returns the id of the subscription.
    pub(super) fn join(&self, one: InFlight) -> i64 {
        let id = one.delivery.subscription.row.id;
        let mut queues = self.queues();
        let queue = queues.entry(id).or_default();
        queue.since.get_or_insert_with(Instant::now);
        queue.waiting.push_back(one);
        queue.joined.notify_one();
        id
    }

    /// Whether one more sender is needed; counts it if so. A sender asks for batches until there is none.
    pub(super) fn needs_sender(&self, id: i64) -> bool {
        let mut queues = self.queues();
        let Some(queue) = queues.get_mut(&id) else { return false };
        let Some(batch) = queue.batch() else { return false };
        // Those with a batch in one take no other before it has ended.
        let idle = queue.senders - queue.sending;
        let needed = queue.senders < batch.in_flight.max(1) && queue.has_more_batches_than(idle, &batch);
        queue.senders += usize::from(needed);
        needed
    }

    /// A sender's batch has ended.
    pub(super) fn sent(&self, id: i64) {
        if let Some(queue) = self.queues().get_mut(&id) {
            queue.sending -= 1;
        }
    }

    /// The next batch, once it is full or has waited long enough. `None`: nothing waits, and the sender ends.
    pub(super) async fn next_batch(&self, id: i64, stop: &CancellationToken) -> Option<Vec<InFlight>> {
        loop {
            let (joined, until) = {
                let mut queues = self.queues();
                let queue = queues.get_mut(&id)?;
                let Some(batch) = queue.batch() else {
                    queue.senders -= 1;
                    if queue.senders == 0 {
                        queues.remove(&id);
                    }
                    return None;
                };
                let until = queue.since.unwrap_or_else(Instant::now) + batch.wait;
                if stop.is_cancelled() || queue.is_full(&batch) || Instant::now() >= until {
                    queue.sending += 1;
                    return Some(queue.take(&batch));
                }
                (queue.joined.clone(), until)
            };
            tokio::select! {
                () = joined.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

impl Queue {
    /// How the first of those who wait may be put together with others.
    fn batch(&self) -> Option<Batch> {
        let outlet = &self.waiting.front()?.delivery.subscription.outlet;
        // A changed subscription may have lost its batches; what had joined then goes one by one.
        Some(outlet.batch().unwrap_or(Batch { max: 1, ..Batch::BROKER }))
    }

    /// How many of those who wait make the next batch, and whether it can grow no further.
    fn next(&self, batch: &Batch) -> (usize, bool) {
        self.batch_from(0, batch)
    }

    /// Whether those who wait make more batches than that.
    fn has_more_batches_than(&self, count: usize, batch: &Batch) -> bool {
        let behind = (0..count).fold(0, |from, _| from + self.batch_from(from, batch).0);
        behind < self.waiting.len()
    }

    /// The same as `next` for those behind the first `from`.
    fn batch_from(&self, from: usize, batch: &Batch) -> (usize, bool) {
        let Some(first) = self.waiting.get(from) else { return (0, true) };
        let goes_alone = |one: &InFlight| {
            let delivery = &one.delivery;
            // Nobody's last attempt may fail because of another's event.
            batch.shares_fate && (delivery.attempt > 1 || delivery.subscription.retry.max_attempts <= 1)
        };
        if goes_alone(first) {
            return (1, true);
        }
        let mut bytes = 0;
        for (count, one) in self.waiting.iter().skip(from).enumerate() {
            bytes += one.delivery.event.payload.len();
            let another_config = !Arc::ptr_eq(&one.delivery.subscription, &first.delivery.subscription);
            if count > 0 && (another_config || goes_alone(one) || count >= batch.max || bytes > batch.bytes) {
                return (count, true);
            }
        }
        let count = self.waiting.len() - from;
        (count, count >= batch.max)
    }

    fn is_full(&self, batch: &Batch) -> bool {
        self.next(batch).1
    }

    fn take(&mut self, batch: &Batch) -> Vec<InFlight> {
        let (count, _) = self.next(batch);
        let taken = self.waiting.drain(..count).collect();
        self.since = (!self.waiting.is_empty()).then(Instant::now);
        taken
    }
}
