//! Room for open connections over all hosts. When there is none, the connection that has been idle longest is
//! closed, so that idle connections never keep a new destination waiting.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::wire::Seen;

/// How long a new connection waits for room.
const WAIT: Duration = Duration::from_secs(2);
/// Fewest entries after which closed connections are removed from the queue.
const FEW: usize = 64;
/// Time for a connection that was asked to close.
const CLOSES_WITHIN: Duration = Duration::from_millis(100);

/// Room for connections, and which of them are idle.
#[derive(Debug)]
pub(super) struct Room {
    free: Arc<Semaphore>,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// In the order in which they became idle. Some may be busy again, or closed.
    queue: VecDeque<Weak<Seen>>,
    /// Length of the queue at which closed connections are removed.
    sweep_at: usize,
}

impl Room {
    /// Room for this many connections; without a number it is not bounded.
    pub(super) fn new(most: Option<usize>) -> Arc<Self> {
        let free = most.unwrap_or(Semaphore::MAX_PERMITS).clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self { free: Arc::new(Semaphore::new(free)), idle: Mutex::default() })
    }

    /// Room for one connection; none if every connection is busy for long.
    pub(super) async fn take(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(free) = Arc::clone(&self.free).try_acquire_owned() {
            return Some(free);
        }
        let waiting = async {
            loop {
                self.close_one();
                let free = timeout(CLOSES_WITHIN, Arc::clone(&self.free).acquire_owned());
                if let Ok(Ok(free)) = free.await {
                    return free;
                }
            }
        };
        timeout(WAIT, waiting).await.ok()
    }

    /// Notes a connection whose request has ended.
    pub(super) fn rests(&self, connection: &Arc<Seen>) {
        if connection.rest() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.queue.push_back(Arc::downgrade(connection));
            if idle.queue.len() > idle.sweep_at {
                idle.queue.retain(|one| one.strong_count() > 0);
                idle.sweep_at = idle.queue.len().max(FEW) * 2;
            }
        }
    }

    /// Asks the connection that has been idle longest to close.
    fn close_one(&self) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = idle.queue.pop_front() {
            if oldest.upgrade().is_some_and(|connection| connection.dismiss()) {
                return;
            }
        }
    }
}
