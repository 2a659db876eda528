//! Which subscriptions want which event. `match` and filters are evaluated once for each event, however often
//! a step is repeated. A crash here costs nothing.
//!
//! A step may fail, and may leave events in the log. What was found is kept until its events are routed, and
//! only then are conditions counted that could not be evaluated.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::telemetry::Telemetry;
use crate::{
    delivery::SubscriptionId,
    event::{Event, Position},
    store::{Error, NewEvent, Store},
    subscription::{Index, Matches},
};

/// Large payloads in memory at once.
const LARGE_AT_ONCE: usize = 16;
/// If the conditions of more subscriptions need the same large payload, it is read and evaluated here once.
/// Otherwise the attempts do it, and routing does not wait.
const UNDECIDED: usize = 64;
/// Time after which other tasks get a turn.
const TURN: Duration = Duration::from_millis(2);

/// Matches of events that are not routed yet, by position.
#[derive(Debug, Default)]
pub(super) struct MatchCache {
    generation: i64,
    known: HashMap<Position, Matches>,
}

impl MatchCache {
    /// Evaluates the conditions for events that were not evaluated at this generation.
    ///
    /// # Errors
    /// Those of reading large payloads.
    pub(super) async fn evaluate(
        &mut self,
        store: &Store,
        index: &Index,
        events: &[NewEvent],
    ) -> Result<(), Error> {
        if self.generation != index.generation {
            self.known.clear();
            self.generation = index.generation;
        }
        if !index.is_choosy() {
            return Ok(());
        }
        let mut unknown = Vec::new();
        for new in events {
            if self.known.contains_key(&new.event.position) {
                continue;
            }
            if new.payload_read || !index.asks_for_payload(&new.event) {
                unknown.push(new);
                continue;
            }
            let matches = index.find_matches_without_payload(&new.event);
            if matches.undecided.len() > UNDECIDED {
                unknown.push(new);
            } else {
                self.known.insert(new.event.position, matches);
            }
        }
        look_at(
            store,
            &unknown,
            |event| index.asks_for_payload(event),
            |event, is_readable| {
                let matches = match is_readable {
                    true => index.find_matches(event),
                    // It becomes a dead letter for those that may want it.
                    false => index.find_matches_without_payload(event),
                };
                self.known.insert(event.position, matches);
            },
        )
        .await?;
        Ok(())
    }

    /// The subscriptions that want an event that was evaluated.
    pub(super) fn wanted_by(&self, position: Position) -> &[SubscriptionId] {
        self.known.get(&position).map_or(&[], |matches| &matches.wanted_by)
    }

    /// The subscriptions whose conditions are evaluated before the attempt.
    pub(super) fn undecided(&self, position: Position) -> &[SubscriptionId] {
        self.known.get(&position).map_or(&[], |matches| &matches.undecided)
    }

    /// Forgets an event that was routed early: its conditions are counted already.
    pub(super) fn pass(&mut self, position: Position) {
        self.known.remove(&position);
    }

    /// Counts the conditions that failed for events that are now routed, and forgets these events.
    pub(super) fn settle<'e>(
        &mut self,
        filter_errors: &FilterErrors,
        telemetry: &Telemetry,
        index: &Index,
        events: impl Iterator<Item = &'e NewEvent>,
    ) {
        for new in events {
            for (id, why) in
                self.known.remove(&new.event.position).into_iter().flat_map(|matches| matches.failed)
            {
                let Some(subscription) = index.get(id) else { continue };
                let is_news = filter_errors.note(id, &why);
                telemetry.filter_failed(&subscription.row.name, &new.event, &why, is_news);
            }
        }
    }

    /// Forgets everything, because another relay has routed the events.
    pub(super) fn forget(&mut self) {
        self.known.clear();
    }
}

/// Calls `look` for each event, with its payload if that is asked for, and whether that can be read. An event
/// that has been removed from the log comes without a payload.
///
/// # Errors
/// Those of reading large payloads.
pub(super) async fn look_at(
    store: &Store,
    events: &[&NewEvent],
    asks_for_payload: impl Fn(&Event) -> bool,
    mut look: impl FnMut(&Event, bool),
) -> Result<(), Error> {
    let mut turn = Instant::now();
    let (read, large): (Vec<&NewEvent>, Vec<&NewEvent>) =
        events.iter().partition(|new| new.payload_read || !asks_for_payload(&new.event));
    for new in read {
        look(&new.event, true);
        if turn.elapsed() > TURN {
            tokio::task::yield_now().await;
            turn = Instant::now();
        }
    }
    for some in large.chunks(LARGE_AT_ONCE) {
        let positions: Vec<Position> = some.iter().map(|new| new.event.position).collect();
        let times = || some.iter().map(|new| new.event.created_at);
        let span = (times().min().unwrap_or_default(), times().max().unwrap_or_default());
        let loaded = store.load_events(&positions, span, i32::MAX).await?;
        for new in some {
            let position = &new.event.position;
            let event = loaded.events.get(position).map_or(&new.event, |loaded| &loaded.event);
            look(event, !loaded.unreadable.contains(position));
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

/// Conditions that could not be evaluated since the relay started, by subscription: a count and the last
/// reason.
#[derive(Debug, Default)]
pub(super) struct FilterErrors {
    counts: Mutex<HashMap<SubscriptionId, Count>>,
}

#[derive(Debug, Default, Clone)]
struct Count {
    errors: i64,
    last: String,
    reported: bool,
}

impl FilterErrors {
    /// Counts one. Returns whether it is the first since the last report.
    pub(super) fn note(&self, subscription: SubscriptionId, why: &str) -> bool {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count =
            counts.entry(subscription).or_insert_with(|| Count { reported: true, ..Count::default() });
        count.errors += 1;
        // PostgreSQL cannot store NUL characters.
        why.replace('\0', "\\0").clone_into(&mut count.last);
        std::mem::replace(&mut count.reported, false)
    }

    /// All counts, for a report.
    pub(super) fn report(&self) -> HashMap<SubscriptionId, (i64, String)> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter_mut()
            .map(|(id, count)| {
                count.reported = true;
                (*id, (count.errors, count.last.clone()))
            })
            .collect()
    }
}
