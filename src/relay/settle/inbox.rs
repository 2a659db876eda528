//! Outcomes on their way to the two settlers, gathered so that a commit writes many.

use std::time::{Duration, Instant};

use tokio::sync::{Mutex, Notify, mpsc};

/// Outcomes in one commit.
const AT_ONCE: usize = 1_000;
/// Outcomes are taken at most once in this time: a commit costs the database as much for one as for a
/// hundred.
const GATHER: Duration = Duration::from_millis(10);

/// The outcomes that wait, in the order of arrival.
#[derive(Debug)]
pub(super) struct Inbox<T> {
    waiting: Mutex<Waiting<T>>,
    gather: Duration,
}

#[derive(Debug)]
struct Waiting<T> {
    outcomes: mpsc::Receiver<T>,
    taken: Instant,
}

impl<T> Inbox<T> {
    pub(super) fn new(outcomes: mpsc::Receiver<T>) -> Self {
        Self { waiting: Mutex::new(Waiting { outcomes, taken: Instant::now() }), gather: GATHER }
    }

    /// Adds outcomes to `taken`: at once if the last ones were taken long ago or when `hurry` rings. Returns
    /// whether there may be more. What was added is kept when this is cancelled.
    pub(super) async fn take(&self, taken: &mut Vec<T>, hurry: &Notify) -> bool {
        let mut waiting = self.waiting.lock().await;
        if waiting.outcomes.recv_many(taken, AT_ONCE).await == 0 {
            return false;
        }
        let gathered = tokio::time::sleep_until((waiting.taken + self.gather).into());
        tokio::select! {
            () = gathered => {}
            () = hurry.notified() => {}
        }
        while taken.len() < AT_ONCE
            && let Ok(one) = waiting.outcomes.try_recv()
        {
            taken.push(one);
        }
        waiting.taken = Instant::now();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So long nobody gathers in these tests: what waits for it does not come in time.
    const LONG: Duration = Duration::from_secs(20);
    const IN_TIME: Duration = Duration::from_secs(10);

    fn inbox(gather: Duration) -> (mpsc::Sender<u32>, Inbox<u32>) {
        let (sender, outcomes) = mpsc::channel(4_096);
        (sender, Inbox { gather, ..Inbox::new(outcomes) })
    }

    async fn take(inbox: &Inbox<u32>, hurry: &Notify) -> Option<Vec<u32>> {
        let mut taken = Vec::new();
        let more = tokio::time::timeout(IN_TIME, inbox.take(&mut taken, hurry)).await.unwrap();
        more.then_some(taken)
    }

    #[tokio::test]
    async fn an_outcome_after_a_rest_does_not_wait() {
        let (sender, inbox) = inbox(LONG);
        inbox.waiting.lock().await.taken -= LONG;
        sender.send(1).await.unwrap();
        assert_eq!(take(&inbox, &Notify::new()).await, Some(vec![1]));
    }

    #[tokio::test]
    async fn outcomes_that_come_one_by_one_are_taken_together() {
        let (sender, inbox) = inbox(GATHER);
        sender.send(1).await.unwrap();
        let sending = async {
            tokio::task::yield_now().await;
            sender.send(2).await.unwrap();
        };
        let hurry = Notify::new();
        let (taken, ()) = tokio::join!(take(&inbox, &hurry), sending);
        assert_eq!(taken, Some(vec![1, 2]));
    }

    #[tokio::test]
    async fn when_permits_are_scarce_nothing_is_gathered() {
        let (sender, inbox) = inbox(LONG);
        let hurry = Notify::new();
        hurry.notify_one();
        sender.send(1).await.unwrap();
        assert_eq!(take(&inbox, &hurry).await, Some(vec![1]));
    }

    #[tokio::test]
    async fn what_waits_is_taken_before_the_end() {
        let (sender, inbox) = inbox(GATHER);
        for one in 0..1_500 {
            sender.send(one).await.unwrap();
        }
        drop(sender);
        let hurry = Notify::new();
        let counts = [take(&inbox, &hurry).await, take(&inbox, &hurry).await]
            .map(|taken| taken.map(|some| some.len()));
        assert_eq!(counts, [Some(AT_ONCE), Some(500)]);
        assert_eq!(take(&inbox, &hurry).await, None);
    }
}
