//! One connection for all who send through a sink: made when the first needs it, by one of them while the others wait for the
//! result, and made anew after it was given up. Nothing happens here between attempts.

use std::{
    fmt,
    future::Future,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::Report;
use crate::delivery::{Outcome, Reason};

/// The connection that a sink has at the moment, if any.
pub(crate) struct SharedConnection<C> {
    made: Mutex<Made<C>>,
    /// Held by whoever connects.
    connecting: tokio::sync::Mutex<()>,
}

struct Made<C> {
    connection: Option<C>,
    /// Counts connections, so that a failure of an old one does not end its successor.
    number: u64,
    /// Those who waited for this failure have it, too.
    failed: Option<(Instant, Report)>,
}

/// A connection, and which of them.
#[derive(Debug, Clone)]
pub(crate) struct Numbered<C> {
    pub(crate) connection: C,
    pub(crate) number: u64,
}

impl<C> Numbered<C> {
    /// A part of it.
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
            made: Mutex::new(Made { connection: None, number: 0, failed: None }),
            connecting: tokio::sync::Mutex::default(),
        }
    }
}

impl<C: Clone> SharedConnection<C> {
    /// The connection, made if there is none. `within` limits waiting and connecting together.
    pub(crate) async fn get<F>(
        &self,
        within: Duration,
        connect: impl FnOnce() -> F,
    ) -> Result<Numbered<C>, Report>
    where
        F: Future<Output = Result<C, Report>>,
    {
        let asked = Instant::now();
        if let Some(there) = self.there() {
            return Ok(there);
        }
        let connecting = async {
            let _connecting = self.connecting.lock().await;
            if let Some(there) = self.there() {
                return Ok(there);
            }
            if let Some((_, report)) = self.made().failed.as_ref().filter(|(at, _)| *at >= asked) {
                return Err(report.clone());
            }
            let connected = connect().await;
            let mut made = self.made();
            match connected {
                Ok(connection) => {
                    made.number += 1;
                    made.connection = Some(connection.clone());
                    made.failed = None;
                    Ok(Numbered { connection, number: made.number })
                }
                Err(report) => {
                    made.failed = Some((Instant::now(), report.clone()));
                    Err(report)
                }
            }
        };
        tokio::time::timeout(within, connecting).await.unwrap_or_else(|_| {
            let said = format!("no connection within {}", crate::delivery::duration::format(within));
            let report =
                Report::from(Outcome::Retry { reason: Reason::ConnectFailed, after: None }).saying(said);
            self.made().failed = Some((Instant::now(), report.clone()));
            Err(report)
        })
    }

    /// Lets go of a connection that failed, unless it has a successor already.
    pub(crate) fn give_up(&self, number: u64) {
        let mut made = self.made();
        if made.number == number {
            made.connection = None;
        }
    }

    fn there(&self) -> Option<Numbered<C>> {
        let made = self.made();
        made.connection.clone().map(|connection| Numbered { connection, number: made.number })
    }

    fn made(&self) -> std::sync::MutexGuard<'_, Made<C>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn many_who_need_it_make_one_connection_and_share_one_failure() {
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
