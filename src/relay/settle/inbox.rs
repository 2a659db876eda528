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
}

#[derive(Debug)]
struct Waiting<T> {
    outcomes: mpsc::Receiver<T>,
    taken: Instant,
}

impl<T> Inbox<T> {
    pub(super) fn new(outcomes: mpsc::Receiver<T>) -> Self {
        Self { waiting: Mutex::new(Waiting { outcomes, taken: Instant::now() }) }
    }

    /// Adds outcomes to `taken`: at once if the last ones were taken long ago or when `hurry` rings. Returns
    /// whether there may be more. What was added is kept when this is cancelled.
    pub(super) async fn take(&self, taken: &mut Vec<T>, hurry: &Notify) -> bool {
        let mut waiting = self.waiting.lock().await;
        if waiting.outcomes.recv_many(taken, AT_ONCE).await == 0 {
            return false;
        }
        let gathered = tokio::time::sleep_until((waiting.taken + GATHER).into());
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

    /// An inbox from which nothing was taken for this long.
    fn inbox(idle: Duration) -> (mpsc::Sender<u32>, Inbox<u32>) {
        let (sender, outcomes) = mpsc::channel(4_096);
        let taken = Instant::now().checked_sub(idle).unwrap();
        (sender, Inbox { waiting: Mutex::new(Waiting { outcomes, taken }) })
    }

    #[tokio::test]
    async fn one_outcome_alone_does_not_wait() {
        let (sender, inbox) = inbox(GATHER);
        sender.send(1).await.unwrap();
        let began = Instant::now();
        let mut taken = Vec::new();
        assert!(inbox.take(&mut taken, &Notify::new()).await);
        assert_eq!(taken, [1]);
        assert!(began.elapsed() < GATHER);
    }

    #[tokio::test]
    async fn outcomes_that_come_one_by_one_are_taken_together() {
        let (sender, inbox) = inbox(Duration::ZERO);
        let (mut taken, hurry) = (Vec::new(), Notify::new());
        sender.send(1).await.unwrap();
        let sending = async {
            tokio::task::yield_now().await;
            sender.send(2).await.unwrap();
        };
        let (more, ()) = tokio::join!(inbox.take(&mut taken, &hurry), sending);
        assert!(more);
        assert_eq!(taken, [1, 2]);
    }

    #[tokio::test]
    async fn when_permits_are_scarce_nothing_is_gathered() {
        let (sender, inbox) = inbox(Duration::ZERO);
        let hurry = Notify::new();
        hurry.notify_one();
        let began = inbox.waiting.lock().await.taken;
        sender.send(1).await.unwrap();
        let mut taken = Vec::new();
        assert!(inbox.take(&mut taken, &hurry).await);
        assert!(inbox.waiting.lock().await.taken.duration_since(began) < GATHER);
    }

    #[tokio::test]
    async fn what_waits_is_taken_before_the_end() {
        let (sender, inbox) = inbox(GATHER);
        for one in 0..1_500 {
            sender.send(one).await.unwrap();
        }
        drop(sender);
        let (mut first, mut second, hurry) = (Vec::new(), Vec::new(), Notify::new());
        assert!(inbox.take(&mut first, &hurry).await && inbox.take(&mut second, &hurry).await);
        assert_eq!((first.len(), second.len()), (AT_ONCE, 500));
        assert!(!inbox.take(&mut Vec::new(), &hurry).await);
    }
}
