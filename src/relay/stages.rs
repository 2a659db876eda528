//! Starts the stages of a relay, and drains them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Drained, ENDS_WITHIN, Error, answers, await_work, backfill, deliver, follow_up, maintain, news, order,
    pace,
    parts::Parts,
    pauses, renew, replay, retain, settle, tidy,
    watch::{Failed, Watch},
    work,
};
use crate::sink::servers::Servers;

/// Runs the stages until `shutdown` is cancelled or one of them fails, then drains. Dropping the future ends
/// the stages without a drain; `trackers` are those of the stages and of the attempts.
pub(super) async fn run(
    parts: Parts,
    listen: Option<Servers>,
    trackers: (TaskTracker, TaskTracker),
    draining: Arc<AtomicBool>,
    failed: Failed,
    shutdown: CancellationToken,
) -> Result<Drained, Error> {
    let (stages, attempts) = trackers;
    let Parts { base, sending, waiting, counted, leases, .. } = parts.clone();
    let (stop, drained) = (shutdown.child_token(), CancellationToken::new());
    let (outcomes, outcomes_inbox) = mpsc::channel(65_536);
    let (bell, bell_task) = await_work::bell(base.clone(), sending.clone(), waiting.clone(), listen);
    let stop_attempts = CancellationToken::new();
    let dropped = CancellationToken::new();
    let _dropped = dropped.clone().drop_guard();
    let watch = Watch::new(base.telemetry.clone(), failed.clone(), stop.clone(), dropped);

    let deliver = Arc::new(deliver::Deliver::new(
        &parts,
        attempts.clone(),
        outcomes,
        stop_attempts.clone(),
        watch.clone(),
    ));
    let settling = settle::Settle::both(&parts, outcomes_inbox, &deliver)
        .map(|settler| stages.spawn(watch.stage("settle", settler.settle())));
    stages.spawn(watch.stage("await_work", bell_task.listen(drained.clone())));
    stages.spawn(watch.stage("renew", renew::renew(base.clone(), leases.clone(), drained.clone())));
    stages.spawn(watch.stage("breakers", follow_up::tell(base.clone(), sending.clone(), drained.clone())));
    stages.spawn(watch.stage("news", news::tell(base.clone(), drained.clone())));
    stages.spawn(watch.stage("answers", answers::record(base.clone(), sending.clone(), drained.clone())));
    stages.spawn(
        watch.stage("pauses", pauses::follow(base.clone(), sending.clone(), waiting.clone(), stop.clone())),
    );
    stages.spawn(watch.stage(
        "maintain",
        maintain::maintain(base.clone(), sending.clone(), waiting.clone(), counted.clone(), stop.clone()),
    ));
    stages.spawn(watch.stage(
        "start",
        backfill::backfill(base.clone(), sending.clone(), waiting.clone(), counted.clone(), stop.clone()),
    ));
    stages.spawn(watch.stage(
        "order",
        order::keep(
            base.clone(),
            sending.clone(),
            waiting.clone(),
            Arc::downgrade(&deliver),
            drained.clone(),
        ),
    ));
    stages.spawn(watch.stage("replay", replay::replay(parts.clone(), stop.clone())));
    stages
        .spawn(watch.stage("pace", pace::keep(base.clone(), sending.clone(), deliver.clone(), stop.clone())));
    stages.spawn(watch.stage("retain", retain::retain(base.clone(), stop.clone())));
    stages.spawn(watch.stage("tidy", tidy::tidy(sending.clone(), deliver.clone(), stop.clone())));
    let working = stages.spawn(watch.stage("work", work::work(parts, bell, deliver.clone(), stop.clone())));
    stages.close();

    // The stage that failed asks `work` to end, too.
    let _ = working.await;
    draining.store(true, Ordering::Release);
    let numbers = sending.dispatch.numbers();
    base.telemetry.stopping(&base.settings.name, (numbers.in_flight + numbers.unsettled) as usize);
    // Deliveries that have not begun are given back at once.
    let back = sending.dispatch.stop();
    deliver.give_back(back, crate::delivery::Reason::RelayStopped).await;
    attempts.close();
    let complete = tokio::time::timeout(base.settings.drain, attempts.wait()).await.is_ok();
    let left = if complete { 0 } else { attempts.len() };
    // Attempts that are cut off report it, and their deliveries are given back at once.
    stop_attempts.cancel();
    attempts.wait().await;
    drop(deliver);
    // All senders are dropped: settling ends when its queue is empty, unless the database stays away.
    let _ = tokio::time::timeout(
        base.settings.lease.max(Duration::from_secs(5)),
        futures_util::future::join_all(settling),
    )
    .await;
    drained.cancel();
    if tokio::time::timeout(ENDS_WITHIN, stages.wait()).await.is_err() {
        tracing::warn!("a stage did not end in time and is abandoned");
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), base.store.leave_relay(&base.settings.name)).await;
    let _ = tokio::time::timeout(Duration::from_secs(2), base.store.close()).await;
    let (pages, rows) = leases.count();
    let unsettled = (sending.dispatch.numbers().unsettled as usize).max(pages + rows);
    base.telemetry.stopped(&base.settings.name, left.max(unsettled));
    match failed.stage() {
        Some(stage) => Err(Error::StageEnded { stage }),
        None => Ok(Drained { complete: complete && unsettled == 0, left: left.max(unsettled) }),
    }
}
