//! What destinations asked for or said of themselves, on its way to the database: pauses and answers of 410.
//! This relay obeys at once; that it is recorded waits for nobody's settling. A crash here loses a pause,
//! which the destination asks for again.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    attempted::Attempted,
    follow_up::is_current,
    parts::{Base, Sending},
    pauses::{self, Pauses},
};
use crate::{
    delivery::{LONGEST_PAUSE, Outcome, SubscriptionId},
    store::{AskedPause, StateChange, SubscriptionState},
    subscription::Index,
};

/// How long this relay sends nothing after an answer of 410, unless the subscription changes. By then it is
/// recorded.
const GONE_FOR: Duration = Duration::from_secs(30);
/// Shorter pauses are not recorded.
const SHORTEST: Duration = Duration::from_secs(1);
/// Pause after an error of the database.
const AGAIN: Duration = Duration::from_secs(1);
/// Time for what is left when the relay has drained.
const LAST: Duration = Duration::from_secs(2);
const REASON: &str = "the destination answered 410 Gone; outbox.resume() sends again";

/// Answers that are not recorded.
#[derive(Debug, Default)]
pub(super) struct Answers {
    waiting: Mutex<Waiting>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    pauses: BTreeMap<SubscriptionId, AskedPause>,
    /// With the generation of subscriptions at which it was true.
    gone: BTreeMap<SubscriptionId, (i64, StateChange)>,
}

impl Waiting {
    /// Notes a pause. A longer one of the same version stays.
    fn ask(&mut self, mut asked: AskedPause) {
        if let Some(before) = self.pauses.get(&asked.id).filter(|before| before.version == asked.version) {
            asked.length = asked.length.max(before.length);
        }
        self.pauses.insert(asked.id, asked);
    }
}

impl Answers {
    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what present destinations asked for, and obeys.
    pub(super) fn note(&self, index: &Index, paused: &Pauses, attempted: &[Attempted]) {
        for one in attempted {
            let (length, is_gone) = match one.report.outcome {
                Outcome::Retry { after: Some(after), .. } => (after.min(LONGEST_PAUSE), false),
                Outcome::Gone => (GONE_FOR, true),
                _ => continue,
            };
            if length < SHORTEST || !is_current(index, one) {
                continue;
            }
            let row = &one.job.delivery.subscription.row;
            // Late answers of attempts that were in flight together say nothing new.
            if is_gone && !has_no_problem(index, row.id) {
                continue;
            }
            paused.pause(row.id, length, Instant::now());
            let mut waiting = self.waiting();
            if is_gone {
                let change = StateChange {
                    id: row.id,
                    from: SubscriptionState::Ok,
                    to: SubscriptionState::Gone,
                    reason: Some(REASON.to_owned()),
                    version: row.version(),
                };
                waiting.gone.insert(row.id, (index.generation, change));
            } else {
                waiting.ask(AskedPause { id: row.id, length, version: row.version() });
            }
            drop(waiting);
            self.some.notify_one();
        }
    }
}

/// Records answers until the relay has drained.
pub(super) async fn record(base: Arc<Base>, sending: Arc<Sending>, drained: CancellationToken) {
    let answers = &sending.answers;
    loop {
        tokio::select! {
            biased;
            () = drained.cancelled() => break,
            () = answers.some.notified() => {}
        }
        let too_late = async {
            drained.cancelled().await;
            tokio::time::sleep_until((Instant::now() + LAST).into()).await;
        };
        let written = tokio::select! {
            written = write(&base, &sending) => written,
            () = too_late => return,
        };
        if !written {
            answers.some.notify_one();
            let again = tokio::time::sleep_until((Instant::now() + AGAIN).into());
            let _ = drained.run_until_cancelled(again).await;
        }
    }
    // Best effort: a later attempt gets the same answer.
    let _ = tokio::time::timeout(LAST, write(&base, &sending)).await;
}

/// Writes all that waits. Returns whether that could be written.
async fn write(base: &Base, sending: &Sending) -> bool {
    let answers = &sending.answers;
    let Waiting { pauses: asked_for, mut gone } = mem::take(&mut *answers.waiting());
    let mut written = true;
    if !gone.is_empty() {
        let changes: Vec<StateChange> = gone.values().map(|(_, change)| change.clone()).collect();
        match base.store.set_subscription_states(&changes).await {
            Ok(recorded) => {
                for id in recorded {
                    gone.remove(&id);
                    base.telemetry.subscription_changed(&name(base, id), SubscriptionState::Gone, REASON);
                }
            }
            Err(error) => base.telemetry.database_failed("answers", &error),
        }
    }
    // Somebody has locked the row. After a change of subscriptions the destination is asked again.
    let index = base.index.load_full();
    gone.retain(|id, (generation, _)| *generation == index.generation && has_no_problem(&index, *id));
    for (id, change) in gone {
        sending.pauses.pause(id, GONE_FOR, Instant::now());
        answers.waiting().gone.entry(id).or_insert(change);
        written = false;
    }
    if !asked_for.is_empty() {
        let asked: Vec<AskedPause> = asked_for.values().cloned().collect();
        match base.store.postpone_subscriptions(&asked, pauses::CHANNEL).await {
            Ok(recorded) => {
                for pause in asked.iter().filter(|pause| recorded.contains(&pause.id)) {
                    base.telemetry.subscription_paused(&name(base, pause.id), pause.length);
                }
            }
            Err(error) => {
                base.telemetry.database_failed("answers", &error);
                let mut waiting = answers.waiting();
                let newer = mem::replace(&mut waiting.pauses, asked_for);
                newer.into_values().for_each(|pause| waiting.ask(pause));
                written = false;
            }
        }
    }
    written
}

fn has_no_problem(index: &Index, id: SubscriptionId) -> bool {
    index.get(id).is_some_and(|one| one.row.state.has_no_problem())
}

fn name(base: &Base, id: SubscriptionId) -> String {
    base.index.load().get(id).map(|subscription| subscription.row.name.clone()).unwrap_or_default()
}
