//! One connection shared by all attempts of a sink: one attempt connects while the others wait for the
//! result, and the next one reconnects after a failure. Nothing runs between attempts.

use std::{
    fmt,
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Report;
use crate::delivery::{Outcome, Reason};

/// The current connection of a sink, if any.
pub(crate) struct SharedConnection<C> {
    state: Mutex<State<C>>,
    /// Locked by the attempt that connects.
    connecting: tokio::sync::Mutex<()>,
}

struct State<C> {
    connection: Option<C>,
    /// Number of the connection: the failure of an old one must not drop its successor.
    number: u64,
    /// Time and report of the last failure, for the attempts that waited for it.
    failed: Option<(Instant, Report)>,
}

/// A connection with its number.
#[derive(Debug, Clone)]
pub(crate) struct Numbered<C> {
    pub(crate) connection: C,
    pub(crate) number: u64,
}

impl<C> Numbered<C> {
    /// Replaces the connection by a part of it.
    pub(crate) fn map<D>(self, part: impl FnOnce(C) -> D) -> Numbered<D> {
        Numbered { connection: part(self.connection), number: self.number }
    }
}

impl<C> fmt::Debug for SharedConnection<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedConnection").finish_non_exhaustive()
    }
}

impl<C> Default for SharedConnection<C> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State { connection: None, number: 0, failed: None }),
            connecting: tokio::sync::Mutex::default(),
        }
    }
}

impl<C: Clone> SharedConnection<C> {
    /// The current connection, or a new one. `within` limits waiting and connecting together.
    pub(crate) async fn get<F>(
        &self,
        within: Duration,
        connect: impl FnOnce() -> F,
    ) -> Result<Numbered<C>, Report>
    where
        F: Future<Output = Result<C, Report>>,
    {
        let asked = Instant::now();
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let connecting = async {
            let _connecting = self.connecting.lock().await;
            if let Some(current) = self.current() {
                return Ok(current);
            }
            if let Some((_, report)) = self.state().failed.as_ref().filter(|(at, _)| *at >= asked) {
                return Err(report.clone());
            }
            let connected = connect().await;
            let mut state = self.state();
            match connected {
                Ok(connection) => {
                    state.number += 1;
                    state.connection = Some(connection.clone());
                    state.failed = None;
                    Ok(Numbered { connection, number: state.number })
                }
                Err(report) => {
                    state.failed = Some((Instant::now(), report.clone()));
                    Err(report)
                }
            }
        };
        tokio::time::timeout(within, connecting).await.unwrap_or_else(|_| {
            let answer = format!("no connection within {}", crate::delivery::duration::format(within));
            let report = Report::from(Outcome::Retry { reason: Reason::ConnectFailed, after: None })
                .with_answer(answer);
            self.state().failed = Some((Instant::now(), report.clone()));
            Err(report)
        })
    }

    /// Drops a connection that failed, unless it was already replaced.
    pub(crate) fn give_up(&self, number: u64) {
        let mut state = self.state();
        if state.number == number {
            state.connection = None;
        }
    }

    fn current(&self) -> Option<Numbered<C>> {
        let state = self.state();
        state.connection.clone().map(|connection| Numbered { connection, number: state.number })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State<C>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn concurrent_attempts_make_one_connection_and_share_one_failure() {
        let (shared, made) = (SharedConnection::<u64>::default(), AtomicU64::new(0));
        let connect = |works: bool| {
            let made = &made;
            move || async move {
                tokio::task::yield_now().await;
                let number = made.fetch_add(1, Ordering::Relaxed);
                if works {
                    Ok(number)
                } else {
                    Err(Report::from(Outcome::Retry { reason: Reason::ConnectFailed, after: None }))
                }
            }
        };
        let failed = futures_util::future::join_all((0..50).map(|_| shared.get(SOON, connect(false)))).await;
        assert!(failed.iter().all(Result::is_err));
        assert_eq!(made.swap(0, Ordering::Relaxed), 1);
        let there = futures_util::future::join_all((0..50).map(|_| shared.get(SOON, connect(true)))).await;
        assert!(there.iter().all(|there| there.as_ref().unwrap().connection == 0));

        shared.give_up(1);
        assert_eq!(shared.get(SOON, connect(true)).await.unwrap().number, 2);
        shared.give_up(1);
        assert_eq!(
            shared.get(SOON, connect(true)).await.unwrap().number,
            2,
            "an old failure does not end the successor"
        );
    }
}
