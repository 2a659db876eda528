//! Replays: past events are sent again to a subscription. The log is worked through part by part, beside
//! routing, and few deliveries of each replay are outstanding at once: live events go first, and a relay
//! begins no delivery of a replay in the last quarter of a subscription's window. Every relay may do it; of
//! two that work on the same part the second to commit changes nothing.
//!
//! A crash here costs nothing: the deliveries of a part are committed together with its progress.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    hints,
    matching::look_at,
    parts::{Base, Counted, Parts, Sending, Waiting},
};
use crate::{
    delivery::SubscriptionId,
    event::{filter::Facts, topic::Pattern},
    store::{Error, NewEvent, Replay},
    subscription::{Subscription, Wanted},
};

/// Most events looked at in one part.
const PART: i64 = 500;
/// Positions that one part looks at, however few events it finds there.
const POSITIONS: i64 = 100_000;
/// Outstanding deliveries of one replay that no attempt has failed for.
const FRESH: i64 = 256;
/// Outstanding deliveries of one replay, with those that wait for a retry.
const OUTSTANDING: i64 = 5_000;
/// With a rate, deliveries are queued so long before they are due (seconds).
const AHEAD: f64 = 1.0;
/// More are queued when no more than this is left of it.
const REFILL: f64 = 0.5;
/// First pause before replays are looked at again. It doubles while nothing can be done.
const AGAIN: Duration = Duration::from_millis(20);
/// Longest such pause.
const SELDOM: Duration = Duration::from_millis(500);
/// Pause while no replay runs; a notification ends it.
const IDLE: Duration = Duration::from_secs(3_600);

/// Works on replays until the relay is stopped.
pub(super) async fn replay(parts: Parts, shutdown: CancellationToken) {
    let Parts { base, sending, waiting, counted, .. } = parts;
    let replays = Replays { base, sending, waiting, counted };
    let Replays { base, waiting, .. } = &replays;
    let mut wait = IDLE;
    let mut again = AGAIN;
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = waiting.replays.notified() => again = AGAIN,
            () = tokio::time::sleep_until((Instant::now() + wait).into()) => {}
            () = shutdown.cancelled() => return,
        }
        wait = match replays.round(&shutdown).await {
            Ok(Round::Idle) => IDLE,
            Ok(Round::Worked) => {
                again = AGAIN;
                AGAIN
            }
            Ok(Round::Waits) => again,
            Err(error) => {
                base.telemetry.database_failed("replay", &error);
                again.max(Duration::from_secs(1))
            }
        };
        again = SELDOM.min(again * 2);
    }
}

/// What a look at all replays did.
#[derive(Debug, PartialEq, Eq)]
enum Round {
    /// No replay is running.
    Idle,
    Worked,
    /// None can go on now.
    Waits,
}

/// What replays use of a relay.
struct Replays {
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
}

impl Replays {
    /// Reads one part for each running replay.
    async fn round(&self, shutdown: &CancellationToken) -> Result<Round, Error> {
        let replays = self.base.store.load_replays(OUTSTANDING).await?;
        if replays.is_empty() {
            return Ok(Round::Idle);
        }
        let index = self.base.index.load_full();
        let mut worked = false;
        for replay in &replays {
            if shutdown.is_cancelled() {
                break;
            }
            let Some(subscription) = index.get(replay.span.subscription_id) else { continue };
            worked |= self.step(subscription, replay).await.unwrap_or_else(|error| {
                // Continue with the other replays.
                self.base.telemetry.database_failed("replay", &error);
                false
            });
        }
        Ok(if worked { Round::Worked } else { Round::Waits })
    }

    /// Goes on with one replay, or ends it. Returns whether something could be done.
    async fn step(&self, subscription: &Subscription, replay: &Replay) -> Result<bool, Error> {
        if replay.span.is_over() {
            // What waits for a retry may take days.
            return Ok(replay.counted == 0 && self.base.store.end_replay(replay).await?);
        }
        // A paused subscription, and one that this relay cannot use, takes nothing.
        let can_go_on = subscription.can_evaluate() && subscription.may_send();
        match room(replay).filter(|_| can_go_on) {
            Some(room) => self.part(subscription, replay, room).await,
            None => Ok(false),
        }
    }

    /// Reads the next part of a replay, and queues up to `room` deliveries. Returns whether it got on.
    async fn part(&self, subscription: &Subscription, replay: &Replay, room: usize) -> Result<bool, Error> {
        let Self { base, sending, waiting, counted } = self;
        let past = base.store.read_past(&replay.span, PART, POSITIONS, subscription.needs_payload()).await;
        let mut past = match past {
            // One by one below, where a payload that cannot be read costs its own event only.
            Err(error) if error.asks_for_less() => {
                base.store.read_past(&replay.span, PART, PART, false).await?
            }
            past => past?,
        };
        let topic = replay.topic.as_deref().and_then(|topic| Pattern::parse(topic).ok());
        let is_meant = |new: &NewEvent| {
            replay.before.is_none_or(|before| new.event.created_at < before)
                && topic.as_ref().is_none_or(|topic| topic.matches(&new.event.topic))
        };
        let events = std::mem::take(&mut past.events);
        let meant: Vec<&NewEvent> = events.iter().filter(|new| is_meant(new)).collect();
        let plainly: Vec<&NewEvent> =
            meant.iter().copied().filter(|new| subscription.wants_plainly(&new.event)).collect();
        let mut evaluated = HashMap::with_capacity(plainly.len());
        look_at(
            &base.store,
            &plainly,
            |_| subscription.needs_payload(),
            |event, is_readable| {
                // One that cannot be read becomes a dead letter.
                let wanted =
                    if is_readable { subscription.evaluate(&Facts::new(event)) } else { Wanted::Yes };
                evaluated.insert(event.position, wanted);
            },
        )
        .await?;
        let mut wanted: Vec<&NewEvent> = plainly
            .iter()
            .copied()
            .filter(|new| evaluated.get(&new.event.position) == Some(&Wanted::Yes))
            .collect();
        if wanted.len() > room {
            // The others are read again with the next part.
            wanted.truncate(room);
            past.reached = wanted.last().map_or(past.reached, |new| new.event.position);
        }
        let seen = meant.iter().filter(|new| new.event.position <= past.reached).count();
        if !base.store.insert_replayed(replay, &past, seen, &wanted).await? {
            return Ok(false);
        }
        // Counted only by the relay that committed the part.
        for new in plainly.iter().filter(|new| new.event.position <= past.reached) {
            if let Some(Wanted::Failed(why)) = evaluated.get(&new.event.position) {
                let is_news = counted.filter_errors.note(subscription.row.id, why);
                base.telemetry.filter_failed(&subscription.row.name, &new.event, why, is_news);
            }
        }
        if !wanted.is_empty() {
            claim_when_due(sending, waiting, subscription.row.id, replay, wanted.len());
            let elsewhere = hints::elsewhere(base, sending, waiting, [subscription.row.id]);
            hints::tell(base, hints::Place::Rows, &elsewhere).await;
        }
        Ok(true)
    }
}

/// How many deliveries may be queued now for a replay; none: it is not worth a statement yet.
fn room(replay: &Replay) -> Option<usize> {
    let most = match replay.gap {
        Some(gap) => {
            let ahead = replay.ahead.unwrap_or_default().max(0.0);
            if ahead > REFILL {
                return None;
            }
            // What falls due until AHEAD; of a low rate the next one.
            #[expect(clippy::cast_possible_truncation, reason = "a float saturates")]
            let wanted = ((AHEAD - ahead) / gap).ceil() as i64;
            // What a slow subscription has not taken is no burst later.
            #[expect(clippy::cast_possible_truncation, reason = "a float saturates")]
            let held = ((AHEAD / gap).ceil() as i64).min(FRESH * 8) - replay.fresh;
            wanted.min(held)
        }
        None if replay.fresh > FRESH / 2 => 0,
        None => FRESH - replay.fresh,
    };
    usize::try_from(most.min(OUTSTANDING - replay.counted)).ok().filter(|most| *most > 0)
}

/// Has what was queued claimed: at once, or each when it is due.
fn claim_when_due(
    sending: &Sending,
    waiting: &Waiting,
    subscription: SubscriptionId,
    replay: &Replay,
    count: usize,
) {
    match replay.gap {
        None => waiting.schedule.fall_behind(subscription),
        Some(gap) => {
            let now = Instant::now();
            let mut due = replay.ahead.unwrap_or_default().max(0.0);
            for _ in 0..count {
                // Notes within a few milliseconds are one.
                waiting.schedule.note(subscription, now + Duration::from_secs_f64(due.min(AHEAD * 2.0)));
                due += gap;
            }
        }
    }
    // Wakes this relay, should it sleep.
    sending.freed.notify_one();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(gap: Option<f64>, ahead: Option<f64>, fresh: i64, counted: i64) -> Replay {
        Replay { gap, ahead, fresh, counted, ..Replay::default() }
    }

    #[test]
    fn few_deliveries_of_a_replay_are_outstanding() {
        assert_eq!(room(&replay(None, None, 0, 0)), Some(256));
        assert_eq!(room(&replay(None, None, 100, 100)), Some(156));
        assert_eq!(room(&replay(None, None, 129, 129)), None, "half of them are still there");
        assert_eq!(room(&replay(None, None, 0, 4_990)), Some(10), "the others wait for a retry");
        assert_eq!(room(&replay(None, None, 0, 5_000)), None);
    }

    #[test]
    fn with_a_rate_a_second_of_it_is_queued() {
        let at_50 = |ahead, fresh| room(&replay(Some(0.02), ahead, fresh, fresh));
        assert_eq!(at_50(None, 0), Some(50));
        assert_eq!(at_50(Some(0.5), 25), Some(25));
        assert_eq!(at_50(Some(0.6), 30), None, "more than half a second is left");
        assert_eq!(at_50(Some(-9.0), 50), None, "what a slow subscription has not taken is no burst later");
        let hourly = |ahead, fresh| room(&replay(Some(360.0), ahead, fresh, fresh));
        assert_eq!(hourly(None, 0), Some(1));
        assert_eq!(hourly(Some(100.0), 0), None);
        assert_eq!(hourly(Some(0.0), 1), None, "the one before is not delivered yet");
    }
}
