//! Waiting for work: for the bell, for what falls due, and for permits.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{LINGER, Work};
use crate::relay::await_work::MaySleep;

/// After a sleep shorter than this, events come so fast that the next sleep is not worth the bell.
const SHORT_NAP: Duration = Duration::from_millis(10);
/// How often it then looks without finding anything before it sleeps.
const LOOKS: u32 = 12;
/// The longest pause between looks while a publisher that did not ring is under way.
const GENTLE: Duration = Duration::from_millis(20);
/// How often a relay that does not attend the bell looks whether the one that does has missed something.
const WATCH_EVERY: Duration = Duration::from_secs(1);
/// How long a relay then looks for itself.
const DISTRUST: Duration = Duration::from_secs(10);

impl Work {
    /// Waits until permits come back, but not longer than `longest`.
    pub(super) async fn await_room(&self, longest: Duration, shutdown: &CancellationToken) {
        let latest = tokio::time::Instant::now() + longest;
        tokio::select! {
            () = self.sending.dispatch.room.notified() => {}
            () = self.sending.freed.notified(), if self.waiting.schedule.count_behind() > 0 => {}
            () = self.until_due() => {}
            () = tokio::time::sleep_until(latest) => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// Waits until something is due, or permits come back for which something waits. Returns whether
    /// something is due.
    async fn until_due_or_room(&self) -> bool {
        loop {
            tokio::select! {
                () = self.until_due() => return true,
                () = self.sending.freed.notified() => {
                    if self.waiting.schedule.count_behind() > 0 {
                        return false;
                    }
                }
            }
        }
    }

    async fn until_due(&self) {
        loop {
            let due = self.waiting.schedule.next().map_or(self.next_poll, |due| due.min(self.next_poll));
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => return,
                () = self.waiting.schedule.sooner.notified() => {}
                () = self.base.reload.news.notified() => return,
                () = self.waiting.relay_started.notified() => return,
                () = self.waiting.look.notified() => return,
            }
        }
    }

    pub(super) async fn await_work(&mut self, shutdown: &CancellationToken) {
        if self.last_nap < SHORT_NAP && self.looks < LOOKS {
            self.looks += 1;
            self.wait(LINGER, shutdown).await;
            return;
        }
        match self.bell.may_sleep().await {
            MaySleep::Yes if !self.armed => self.armed = true, // one more look
            MaySleep::Yes | MaySleep::NoBell => self.sleep(None, shutdown).await,
            // It may be frozen while it is awake: then nobody rings.
            MaySleep::OthersWatch if self.attendant_missed.is_some_and(|then| then.elapsed() < DISTRUST) => {
                self.wait_gently(shutdown).await;
            }
            MaySleep::OthersWatch => self.sleep(Some(WATCH_EVERY), shutdown).await,
            MaySleep::NotYet => self.wait_gently(shutdown).await,
        }
    }

    async fn wait_gently(&mut self, shutdown: &CancellationToken) {
        let pause = self.gentle;
        self.gentle = (self.gentle * 2).min(GENTLE);
        self.wait(pause, shutdown).await;
    }

    /// Sleeps until the bell is rung or something is due, but not longer than `longest`.
    async fn sleep(&mut self, longest: Option<Duration>, shutdown: &CancellationToken) {
        self.base.telemetry.slept();
        self.woke_unrung = false;
        let began = Instant::now();
        tokio::select! {
            () = self.bell.rung.notified() => {
                self.busy = Instant::now();
                self.last_nap = began.elapsed();
                self.looks = 0;
                self.gentle = LINGER;
                if std::mem::take(&mut self.armed) {
                    self.bell.woke();
                }
            }
            is_due = self.until_due_or_room() => {
                if is_due {
                    self.last_nap = Duration::MAX;
                }
            }
            () = after(longest) => self.woke_unrung = true,
            () = shutdown.cancelled() => {}
        }
        self.base.telemetry.woke();
    }

    pub(super) async fn wait(&self, pause: Duration, shutdown: &CancellationToken) {
        tokio::select! {
            () = self.bell.rung.notified() => {}
            () = tokio::time::sleep_until((Instant::now() + pause).into()) => {}
            () = self.until_due() => {}
            () = shutdown.cancelled() => {}
        }
    }
}

/// Ends after this time; without a time never.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep_until((Instant::now() + time).into()).await,
        None => std::future::pending().await,
    }
}
