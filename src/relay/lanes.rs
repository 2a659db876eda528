//! Deliveries to sinks that take several at once gather here: a lane for each subscription, in the order of the log. While as
//! many batches are under way as the sink wants, the next ones grow; so they are large under load and nobody waits without.
//!
//! Who waits here holds a permit and a lease like one in the air. A crash costs nothing more than that.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::permits::Permit;
use crate::{delivery::Delivery, sinks::Batch};

/// A delivery in the air, or waiting for its batch.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) delivery: Delivery,
    pub(super) permit: Permit,
}

/// All lanes, by subscription.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Mutex<HashMap<i64, Lane>>,
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Flight>,
    /// Since when the first one waits.
    since: Option<Instant>,
    /// Those who fly it, and how many of them are in the air with a batch.
    pilots: usize,
    flying: usize,
    /// Rings when somebody joins.
    joined: Arc<Notify>,
}

impl Lanes {
    fn lanes(&self) -> std::sync::MutexGuard<'_, HashMap<i64, Lane>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery at the end of its lane, and returns which that is.
    pub(super) fn join(&self, flight: Flight) -> i64 {
        let id = flight.delivery.subscription.row.id;
        let mut lanes = self.lanes();
        let lane = lanes.entry(id).or_default();
        lane.since.get_or_insert_with(Instant::now);
        lane.waiting.push_back(flight);
        lane.joined.notify_one();
        id
    }

    /// Whether one more pilot should fly this lane; counts it if so. A pilot boards again and again until it is let go.
    pub(super) fn needs_pilot(&self, id: i64) -> bool {
        let mut lanes = self.lanes();
        let Some(lane) = lanes.get_mut(&id) else { return false };
        let Some(batch) = lane.batch() else { return false };
        // Those in the air take nobody along before they are back.
        let boarding = lane.pilots - lane.flying;
        let needed = lane.pilots < batch.in_flight.max(1) && lane.has_more_batches_than(boarding, &batch);
        lane.pilots += usize::from(needed);
        needed
    }

    /// A pilot is back from its batch.
    pub(super) fn landed(&self, id: i64) {
        if let Some(lane) = self.lanes().get_mut(&id) {
            lane.flying -= 1;
        }
    }

    /// The next batch, once it is full or has waited long enough. `None`: nobody waits, and the pilot is let go.
    pub(super) async fn board(&self, id: i64, stop: &CancellationToken) -> Option<Vec<Flight>> {
        loop {
            let (joined, until) = {
                let mut lanes = self.lanes();
                let lane = lanes.get_mut(&id)?;
                let Some(batch) = lane.batch() else {
                    lane.pilots -= 1;
                    if lane.pilots == 0 {
                        lanes.remove(&id);
                    }
                    return None;
                };
                let until = lane.since.unwrap_or_else(Instant::now) + batch.wait;
                if stop.is_cancelled() || lane.is_full(&batch) || Instant::now() >= until {
                    lane.flying += 1;
                    return Some(lane.take(&batch));
                }
                (lane.joined.clone(), until)
            };
            tokio::select! {
                () = joined.notified() => {}
                () = tokio::time::sleep_until(until.into()) => {}
                () = stop.cancelled() => {}
            }
        }
    }
}

impl Lane {
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
        let goes_alone = |flight: &Flight| {
            let delivery = &flight.delivery;
            // Nobody's last attempt may fail because of another's event.
            batch.shares_fate && (delivery.attempt > 1 || delivery.subscription.retry.max_attempts <= 1)
        };
        if goes_alone(first) {
            return (1, true);
        }
        let mut bytes = 0;
        for (count, flight) in self.waiting.iter().skip(from).enumerate() {
            bytes += flight.delivery.event.payload.len();
            let another_config = !Arc::ptr_eq(&flight.delivery.subscription, &first.delivery.subscription);
            if count > 0 && (another_config || goes_alone(flight) || count >= batch.max || bytes > batch.bytes) {
                return (count, true);
            }
        }
        let count = self.waiting.len() - from;
        (count, count >= batch.max)
    }

    fn is_full(&self, batch: &Batch) -> bool {
        self.next(batch).1
    }

    fn take(&mut self, batch: &Batch) -> Vec<Flight> {
        let (count, _) = self.next(batch);
        let boarded = self.waiting.drain(..count).collect();
        self.since = (!self.waiting.is_empty()).then(Instant::now);
        boarded
    }
}
