//! Notifications for systemd (`sd_notify`): ready, reloading, stopping, and for its watchdog that the process
//! is alive. Sends nothing where `NOTIFY_SOCKET` is not set.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use tokio::task::JoinSet;

/// Time that a stop may take beyond the drain: giving back what is left, and closing connections.
const BEYOND_DRAIN: Duration = Duration::from_secs(10);

/// A relay works; or it works again after [`reloading`].
pub(super) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// SIGHUP came. [`ready`] ends it.
pub(super) fn reloading() {
    // Without the time systemd would not know which of several reloads has ended.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now]);
    }
}

/// The drain begins, and takes at most so long. It may be longer than the manager would wait by itself.
pub(super) fn stopping(drain: Duration) {
    let longest = u32::try_from((drain + BEYOND_DRAIN).as_micros()).unwrap_or(u32::MAX);
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("draining"),
        NotifyState::ExtendTimeoutUsec(longest),
    ]);
}

/// Does this work, and notifies the watchdog meanwhile that the process is alive.
pub(super) async fn watched<T>(work: impl Future<Output = T>) -> T {
    tokio::select! {
        done = work => done,
        never = feed() => match never {},
    }
}

/// Feeds the watchdog from the threads on which stages run and probes are answered, as long as they run
/// tasks: when `/livez` would answer.
async fn feed() -> Infallible {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return std::future::pending().await;
    };
    let mut turns = tokio::time::interval(limit / 3);
    turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut feeding = JoinSet::new();
    loop {
        turns.tick().await;
        feeding.spawn(async { notify(&[NotifyState::Watchdog]) });
        let _ = feeding.join_next().await;
    }
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "notifying systemd failed");
    }
}
