//! Past events of subscriptions that begin before they were created: the log is worked through part by part,
//! beside routing. Every relay may do it; of two that work on the same part the second to commit changes
//! nothing. A subscription whose conditions cannot be used waits until they are fixed.
//!
//! A crash here costs nothing: the deliveries of a part are committed together with its progress.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::{
    await_work::DOORBELL,
    hints,
    matching::look_at,
    parts::{Base, Counted, Sending, Waiting},
};
use crate::{
    delivery::SubscriptionId,
    event::filter::Facts,
    store::{Error, NewEvent, Start},
    subscription::{Subscription, Wanted},
};

/// Events in one part.
const PART: i64 = 500;
/// Positions that one part looks at, however few events it finds there.
const POSITIONS: i64 = 100_000;
/// A subscription that is owed more deliveries than this waits before its next part.
const ENOUGH: i64 = 5_000;
/// First pause before a subscription that waits is looked at again. It doubles.
const AGAIN: Duration = Duration::from_millis(250);
/// Longest such pause.
const SELDOM: Duration = Duration::from_secs(4);
/// Pause while no backfill is known; a reload ends it.
const IDLE: Duration = Duration::from_secs(3_600);

/// Backfills until the relay is stopped.
pub(super) async fn backfill(
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    counted: Arc<Counted>,
    shutdown: CancellationToken,
) {
    let mut done: HashSet<SubscriptionId> = HashSet::new();
    let mut wait = IDLE;
    let mut again = AGAIN;
    while !shutdown.is_cancelled() {
        tokio::select! {
            () = waiting.starts.notified() => again = AGAIN,
            () = tokio::time::sleep_until((std::time::Instant::now() + wait).into()) => {}
            () = shutdown.cancelled() => return,
        }
        wait = match round(&base, &sending, &waiting, &counted, &mut done, &shutdown).await {
            Ok(0) => IDLE,
            Ok(_) => again,
            Err(error) => {
                base.telemetry.database_failed("start", &error);
                again.max(Duration::from_secs(1))
            }
        };
        again = SELDOM.min(again * 2);
    }
}

/// Reads one part for each subscription that is not done. Returns how many subscriptions are left.
async fn round(
    base: &Base,
    sending: &Sending,
    waiting: &Waiting,
    counted: &Counted,
    done: &mut HashSet<SubscriptionId>,
    shutdown: &CancellationToken,
) -> Result<usize, Error> {
    let index = base.index.load_full();
    done.retain(|id| index.get(*id).is_some());
    let asked: Vec<SubscriptionId> = index.starting().filter(|id| !done.contains(id)).collect();
    if asked.is_empty() {
        return Ok(0);
    }
    let starts = base.store.load_starts(&asked).await?;
    let left: HashSet<SubscriptionId> = starts.iter().map(|start| start.subscription_id).collect();
    done.extend(asked.into_iter().filter(|id| !left.contains(id)));
    let (mut worked, mut elsewhere) = (false, Vec::new());
    for start in starts.iter().filter(|start| start.is_fixed()) {
        if shutdown.is_cancelled() {
            break;
        }
        if let Some(subscription) =
            index.get(start.subscription_id).filter(|subscription| subscription.can_evaluate())
        {
            let has_worked =
                part(base, waiting, counted, subscription, start).await.unwrap_or_else(|error| {
                    // Continue with the other subscriptions.
                    base.telemetry.database_failed("start", &error);
                    false
                });
            worked |= has_worked;
            if has_worked {
                elsewhere.extend(hints::elsewhere(base, sending, waiting, [start.subscription_id]));
            }
        }
    }
    if worked {
        // Wakes the relays, including this one.
        for place in [hints::Place::Backlog, hints::Place::Rows] {
            hints::tell(base, place, &elsewhere).await;
        }
        base.store.ring(DOORBELL).await?;
        waiting.starts.notify_one();
    }
    Ok(left.len())
}

/// Reads the next part for one subscription. Returns whether there was one.
async fn part(
    base: &Base,
    waiting: &Waiting,
    counted: &Counted,
    subscription: &Subscription,
    start: &Start,
) -> Result<bool, Error> {
    if base.store.count_owed(start.subscription_id, waiting.schedule.floor(), ENOUGH).await? >= ENOUGH {
        return Ok(false);
    }
    if start.is_over() {
        base.store.end_start(start).await?;
        waiting.schedule.hold_back(start.subscription_id, false); // of an ordered one what was behind it
        base.telemetry.start_ended(&subscription.row.name);
        return Ok(true);
    }
    let past = match base.store.read_past(start, PART, POSITIONS, subscription.needs_payload()).await {
        // One by one below, where a payload that cannot be read costs its own event only.
        Err(error) if error.asks_for_less() => base.store.read_past(start, PART, PART, false).await?,
        past => past?,
    };
    let plainly: Vec<&NewEvent> =
        past.events.iter().filter(|new| subscription.wants_plainly(&new.event)).collect();
    let mut evaluated = HashMap::with_capacity(plainly.len());
    look_at(
        &base.store,
        &plainly,
        |_| subscription.needs_payload(),
        |event, is_readable| {
            // One that cannot be read becomes a dead letter.
            let wanted = if is_readable { subscription.evaluate(&Facts::new(event)) } else { Wanted::Yes };
            evaluated.insert(event.position, wanted);
        },
    )
    .await?;
    let (mut wanted, mut failed) = (Vec::new(), Vec::new());
    for new in plainly {
        match evaluated.remove(&new.event.position) {
            Some(Wanted::Yes) => wanted.push(new),
            Some(Wanted::Failed(why)) => failed.push((new, why)),
            Some(Wanted::No(_)) | None => {}
        }
    }
    if !base.store.insert_past(start, &past, &wanted).await? {
        return Ok(true);
    }
    // Counted only by the relay that committed the part.
    for (new, why) in failed {
        let is_news = counted.filter_errors.note(subscription.row.id, &why);
        base.telemetry.filter_failed(&subscription.row.name, &new.event, &why, is_news);
    }
    if !wanted.is_empty() {
        waiting.schedule.hold_back(start.subscription_id, false);
        waiting.schedule.fall_behind(start.subscription_id);
        if wanted.iter().any(|new| new.priority > 0) {
            waiting.schedule.look_back(start.subscription_id); // priority moves the due time into the past
        }
    }
    Ok(true)
}
