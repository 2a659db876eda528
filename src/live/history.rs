//! Reads the log for clients that are behind the ring. Those at the same place share what is read.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OnceCell, Semaphore};

use super::{
    feed::{self, Feed, PAGE},
    message::{Code, Refusal},
    payloads,
    ring::Batch,
};
use crate::{
    relay::telemetry::{Telemetry, chain},
    store::{Cursor, Error, Store},
};

/// Pages that are kept, for others at the same place.
const KEPT: usize = 32;

/// The log behind the ring.
#[derive(Debug)]
pub(super) struct History {
    store: Arc<Store>,
    feed: Arc<Feed>,
    telemetry: Arc<Telemetry>,
    pages: Mutex<VecDeque<Page>>,
    /// Reads at once.
    reads: Semaphore,
}

#[derive(Debug, Clone)]
struct Page {
    cursor: Arc<Cursor>,
    batch: Arc<OnceCell<Arc<Batch>>>,
}

impl History {
    pub(super) fn new(store: Arc<Store>, feed: Arc<Feed>, telemetry: Arc<Telemetry>) -> Self {
        Self { store, feed, telemetry, pages: Mutex::default(), reads: Semaphore::new(1) }
    }

    /// What comes behind a cursor that is behind the ring: a page, the end of which is nearer to the ring, or
    /// a place that the ring knows.
    ///
    /// # Errors
    /// When the database does not answer.
    pub(super) async fn behind(&self, cursor: &Arc<Cursor>) -> Result<Arc<Batch>, Refusal> {
        let page = self.page(cursor);
        let read = page.batch.get_or_try_init(|| Box::pin(self.read(cursor))).await.cloned();
        // Nothing for others to share: the ring knows the place by now.
        if read.as_ref().is_ok_and(|batch| !batch.mark.after.is_same_place(cursor)) {
            return read;
        }
        self.pages().retain(|other| !Arc::ptr_eq(&other.batch, &page.batch));
        read
    }

    async fn read(&self, cursor: &Arc<Cursor>) -> Result<Arc<Batch>, Refusal> {
        let _turn = self.reads.acquire().await.map_err(|_| feed::unavailable())?;
        // The end of the page must be a later snapshot than that of the cursor, and one that the ring knows.
        let here = self.feed.catch_up().await?;
        let (_, head, _) = self.feed.head()?;
        let read = |with_payloads| self.store.read_until(cursor, &head, PAGE, with_payloads, &here);
        let stretch = match read(true).await {
            Err(error) if error.is_about_a_value() => read(false).await,
            read => read,
        };
        let batch = payloads::batch(&self.store, stretch.map_err(failed)?, &here).await.map_err(failed)?;
        self.telemetry.live_history_read();
        // After the events were read: what was removed before that, they may lack.
        let removed = self.store.forgotten().await.map_err(failed)?.and_then(|removed| removed.xid);
        match removed {
            Some(xid) if cursor.may_lack(&xid) => {
                let reason = "since: events behind the token were removed; begin with a snapshot or a time";
                Err(Refusal::new(Code::TokenTooOld, reason))
            }
            _ => Ok(Arc::new(batch)),
        }
    }

    fn page(&self, cursor: &Arc<Cursor>) -> Page {
        let mut pages = self.pages();
        if let Some(page) = pages.iter().find(|page| page.cursor.is_same_place(cursor)) {
            return page.clone();
        }
        let page = Page { cursor: cursor.clone(), batch: Arc::default() };
        if pages.len() >= KEPT {
            pages.pop_front();
        }
        pages.push_back(page.clone());
        page
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, VecDeque<Page>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn failed(error: Error) -> Refusal {
    tracing::warn!(error = chain(&error), "reading the log for a live client failed");
    feed::unavailable()
}
