//! Reads the log for clients that are behind the ring. Those at the same place share what is read.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
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
const KEPT: usize = 256;
/// Bytes of the pages that are kept, and one page.
const MOST: usize = 32 * 1024 * 1024;

/// The log behind the ring.
#[derive(Debug)]
pub(super) struct History {
    store: Arc<Store>,
    feed: Arc<Feed>,
    telemetry: Arc<Telemetry>,
    pages: Mutex<Pages>,
    /// Reads at once.
    reads: Semaphore,
}

/// Pages that are kept, of one epoch of the feed.
#[derive(Debug, Default)]
struct Pages {
    epoch: u64,
    kept: VecDeque<Page>,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Page {
    cursor: Arc<Cursor>,
    batch: Arc<OnceCell<Arc<Batch>>>,
    /// Its bytes, as far as they are counted.
    size: Arc<AtomicUsize>,
}

impl Page {
    fn new(cursor: &Arc<Cursor>) -> Self {
        Self { cursor: cursor.clone(), batch: Arc::default(), size: Arc::default() }
    }

    fn size(&self) -> usize {
        self.size.load(Ordering::Relaxed)
    }
}

impl Pages {
    /// Drops the oldest pages, until there is room for so many bytes.
    fn make_room(&mut self, bytes: usize) {
        while (self.bytes + bytes > MOST || self.kept.len() >= KEPT)
            && let Some(oldest) = self.kept.pop_front()
        {
            self.bytes -= oldest.size();
        }
    }

    fn remove(&mut self, page: &Page) {
        if let Some(index) = self.kept.iter().position(|kept| Arc::ptr_eq(&kept.batch, &page.batch)) {
            self.kept.remove(index);
            self.bytes -= page.size();
        }
    }
}

impl History {
    pub(super) fn new(store: Arc<Store>, feed: Arc<Feed>, telemetry: Arc<Telemetry>) -> Self {
        Self { store, feed, telemetry, pages: Mutex::default(), reads: Semaphore::new(1) }
    }

    /// What comes behind a cursor that is behind the ring: a page, the end of which is nearer to the ring, or
    /// a place that the ring knows.
    ///
    /// # Errors
    /// When events behind the cursor were removed, or the database does not answer.
    pub(super) async fn behind(&self, cursor: &Arc<Cursor>) -> Result<Arc<Batch>, Refusal> {
        let page = self.page(cursor);
        let read = page.batch.get_or_try_init(|| Box::pin(self.read(cursor, &page))).await.cloned();
        // Nothing for others to share: the ring knows the place by now.
        if read.as_ref().is_ok_and(|batch| !batch.mark.after.is_same_place(cursor)) {
            return read;
        }
        self.pages().remove(&page);
        read
    }

    async fn read(&self, cursor: &Arc<Cursor>, page: &Page) -> Result<Arc<Batch>, Refusal> {
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
        let removed = self.store.forgotten().await.map_err(failed)?;
        if removed.is_some_and(|removed| cursor.may_lack(&removed)) {
            let reason = "since: events behind the token were removed; begin with a snapshot or a time";
            return Err(Refusal::new(Code::TokenTooOld, reason));
        }
        // Its size counts from when it is there. The page itself stays, or there would be no sharing.
        let mut pages = self.pages();
        pages.remove(page);
        pages.make_room(batch.size());
        page.size.store(batch.size(), Ordering::Relaxed);
        pages.bytes += batch.size();
        pages.kept.push_back(page.clone());
        Ok(Arc::new(batch))
    }

    fn page(&self, cursor: &Arc<Cursor>) -> Page {
        let epoch = self.feed.epoch();
        let mut pages = self.pages();
        if pages.epoch != epoch {
            *pages = Pages { epoch, ..Pages::default() };
        }
        // All of the cursor: also its bounds say what is read.
        if let Some(page) = pages.kept.iter().find(|page| *page.cursor == **cursor) {
            return page.clone();
        }
        let page = Page::new(cursor);
        pages.make_room(0);
        pages.kept.push_back(page.clone());
        page
    }

    fn pages(&self) -> std::sync::MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what `map_err` calls")]
fn failed(error: Error) -> Refusal {
    tracing::warn!(error = chain(&error), "reading the log for a live client failed");
    feed::unavailable()
}
