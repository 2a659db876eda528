//! Tells whoever serves live clients that there are new events. Publishers do not notify while a relay is
//! awake, so a relay that reads new events says so: within this process over a channel, and to other
//! processes with a notification, while there are any. A crash here costs gateways the time until their
//! poll.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::parts::Base;
use crate::store::retry_waits;

/// Channel on which gateways are notified.
pub(super) const CHANNEL: &str = "outbox_news";
/// Beginning of a notification on the doorbell: there is a new gateway, of this name.
const GATEWAY: &str = "gateway ";

/// Shortest time between two notifications.
const PACE: Duration = Duration::from_millis(5);
/// How long a gateway counts that was heard of, whatever the last report says, which may be older.
const HEARD: Duration = Duration::from_secs(15);

/// What is to be told, and to whom.
#[derive(Debug)]
pub(super) struct News {
    /// For this process: changes with each of the news.
    seen: watch::Sender<u64>,
    /// Other processes are to be notified.
    due: Notify,
    gateways: Mutex<Gateways>,
}

/// What is known of other processes with live clients.
#[derive(Debug, Default)]
struct Gateways {
    /// The last report found some.
    counted: bool,
    /// When a new one was heard of.
    heard: Option<Instant>,
}

impl Gateways {
    fn are_there(&self, now: Instant) -> bool {
        self.counted || self.heard.is_some_and(|then| now.duration_since(then) < HEARD)
    }
}

impl Default for News {
    fn default() -> Self {
        Self { seen: watch::Sender::new(0), due: Notify::new(), gateways: Mutex::default() }
    }
}

impl News {
    /// This relay has read new events, or knows that there may be some that it does not read now.
    pub(super) fn are_there(&self) {
        self.hear();
        if self.has_gateways() {
            self.due.notify_one();
        }
    }

    /// Somebody else knows of new events: tells this process.
    pub(super) fn hear(&self) {
        self.seen.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Notes how many other processes have live clients.
    pub(super) fn count_gateways(&self, count: i64) {
        let was_known = self.has_gateways();
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).counted = count > 0;
        if count > 0 && !was_known {
            self.due.notify_one();
        }
    }

    /// Hears a notification on the doorbell. A new gateway is told at once, also of what was read before this
    /// relay knew of it; that of this process, which has the relay's name, reads by itself.
    pub(super) fn hear_doorbell(&self, message: &str, relay: &str) {
        match message.strip_prefix(GATEWAY) {
            Some(name) if name != relay => self.hear_of_gateway(),
            Some(_) => {}
            None => self.hear(),
        }
    }

    fn hear_of_gateway(&self) {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).heard = Some(Instant::now());
        self.due.notify_one();
    }

    /// A receiver whose value changes with each of the news.
    pub(super) fn follow(&self) -> watch::Receiver<u64> {
        self.seen.subscribe()
    }

    /// Whether somebody in this process wants to know.
    pub(super) fn is_followed(&self) -> bool {
        self.seen.receiver_count() > 0
    }

    fn has_gateways(&self) -> bool {
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).are_there(Instant::now())
    }
}

/// Notifies other processes until the relay has drained: at most every 5 ms, and always after the last of the
/// news.
pub(super) async fn tell(base: Arc<Base>, drained: CancellationToken) {
    let notify = || async {
        let told = base.store.tell_news().await;
        told.inspect_err(|error| base.telemetry.database_failed("news", error)).is_ok()
    };
    tell_by(&base.news, notify, drained).await;
}

/// Calls `notify`, which returns whether it succeeded. What failed is tried again.
async fn tell_by<A>(news: &News, notify: impl Fn() -> A, drained: CancellationToken)
where
    A: Future<Output = bool>,
{
    let mut pace = tokio::time::interval(PACE);
    let mut waits = retry_waits();
    loop {
        tokio::select! {
            biased; // what is due is told before the end
            () = news.due.notified() => {}
            () = drained.cancelled() => return,
        }
        pace.tick().await;
        pace.reset(); // from now, however late this one is
        if notify().await {
            waits = retry_waits();
            continue;
        }
        news.due.notify_one();
        let wait = waits.next().unwrap_or(Duration::from_secs(1));
        if tokio::time::timeout(wait, drained.cancelled()).await.is_ok() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_gateway_counts_while_reports_find_one_and_for_15_s_after_it_was_heard_of() {
        let now = Instant::now();
        let is_there = |counted, heard| Gateways { counted, heard }.are_there(now + HEARD);
        assert!(!is_there(false, None));
        assert!(is_there(true, None));
        assert!(!is_there(false, Some(now)));
        assert!(is_there(false, Some(now + Duration::from_millis(1))));
    }

    #[tokio::test]
    async fn gateways_are_notified_every_5_ms_at_most_after_the_last_news_and_again_after_a_failure() {
        let (news, drained) = (News::default(), CancellationToken::new());
        news.count_gateways(1);
        let (told, fails) = (Mutex::new(Vec::new()), AtomicBool::new(true));
        let notify = || async {
            told.lock().unwrap().push((Instant::now(), *news.seen.borrow()));
            !fails.swap(false, Ordering::Relaxed)
        };
        let reading = async {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(300) {
                news.are_there();
                tokio::task::yield_now().await;
            }
            news.are_there();
            drained.cancel();
        };
        tokio::join!(tell_by(&news, notify, drained.clone()), reading);
        let told = told.lock().unwrap();
        let waits: Vec<Duration> = told.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(waits.len() >= 10, "{waits:?}");
        assert!(waits[0] >= Duration::from_millis(50), "the first one failed: {waits:?}");
        assert!(waits.iter().all(|wait| *wait >= Duration::from_millis(4)), "{waits:?}");
        assert_eq!(told.last().unwrap().1, *news.seen.borrow(), "the last news are told");
    }
}
