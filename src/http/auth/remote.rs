//! A set of keys at a URL. It is fetched at start, then again and again, and sooner when a token names a key
//! that is not in it. What was fetched is kept while fetching fails.

use std::{sync::Arc, time::Duration};

use jsonwebtoken::{Algorithm, DecodingKey};
use tokio::{
    sync::{Notify, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::keys::{Keys, LARGEST};
use crate::{sink::egress::Egress, sinks::webhook::document};

/// Most requests that wait for a fetch at once: anybody can name a key, and those that wait take the places
/// of others.
const WAITING: usize = 32;

/// When a set is fetched.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Interval of fetching.
    pub every: Duration,
    /// Least time after a fetch until a key that is not in the set, or a failure, makes it be fetched again.
    pub least: Duration,
    /// Timeout of fetching.
    pub within: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { every: seconds(300), least: seconds(10), within: seconds(5) }
    }
}

/// A set of keys that is followed.
#[derive(Debug)]
pub struct Remote {
    url: Url,
    egress: Egress,
    pace: Pace,
    fetched: watch::Sender<Fetched>,
    /// A token names a key that is not in the set.
    wanted: Notify,
    waiting: Semaphore,
}

/// What is known of the set.
#[derive(Debug, Clone, Default)]
struct Fetched {
    /// The set of the last fetch that succeeded.
    keys: Option<Arc<Keys>>,
    /// Fetches that have ended, and when the last one did.
    ended: (u64, Option<Instant>),
    /// Whether the last fetch failed.
    failed: bool,
}

/// Why there is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The set does not have it.
    Unknown,
    /// The set cannot be fetched, so it may have it.
    Unfetched,
}

impl Fetched {
    fn is_old(&self, least: Duration) -> bool {
        self.ended.1.is_none_or(|at| at.elapsed() >= least)
    }

    fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<DecodingKey> {
        self.keys.as_ref()?.find(id, algorithm).cloned()
    }
}

impl Remote {
    /// A set that nobody has fetched yet. `egress` has the authorities and the proxy.
    #[must_use]
    pub fn new(url: Url, egress: Egress, pace: Pace) -> Self {
        Self {
            url,
            egress,
            pace,
            fetched: watch::Sender::default(),
            wanted: Notify::new(),
            waiting: Semaphore::new(WAITING),
        }
    }

    /// Whether this is the same set, reached in the same way.
    pub(in crate::http) fn is_same(&self, other: &Self) -> bool {
        let way = |one: &Self| (one.egress.proxy.clone(), one.egress.ca_file.clone());
        self.url == other.url && way(self) == way(other)
    }

    /// Fetches the set once and tells whether it can be used.
    ///
    /// # Errors
    /// A message that does not name the URL.
    pub async fn check(&self) -> Result<(), String> {
        self.fetch().await.map(drop)
    }

    /// Fetches the set whenever that is due, until `shutdown`.
    pub(super) async fn follow(&self, shutdown: &CancellationToken) {
        loop {
            let _ = shutdown.run_until_cancelled(timeout_at(self.due(), self.wanted())).await;
            let Some(keys) = shutdown.run_until_cancelled(self.fetch()).await else { return };
            self.note(keys);
        }
    }

    /// The key of this id and algorithm. Waits for a fetch if one is due.
    pub(super) async fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Result<DecodingKey, Missing> {
        let mut following = self.fetched.subscribe();
        let mut known = following.borrow_and_update().clone();
        if let Some(key) = known.find(id, algorithm) {
            return Ok(key);
        }
        if known.is_old(self.pace.least) {
            let Ok(_waits) = self.waiting.try_acquire() else { return Err(Missing::Unfetched) };
            self.wanted.notify_one();
            let before = known.ended.0;
            // A little longer than a fetch, which may be one that began before.
            let newer = following.wait_for(|fetched| fetched.ended.0 > before);
            if let Ok(Ok(newer)) = timeout(self.pace.within + self.pace.within / 4, newer).await {
                known = newer.clone();
            }
        }
        let is_current = known.keys.is_some() && !known.failed;
        let missing = if is_current { Missing::Unknown } else { Missing::Unfetched };
        known.find(id, algorithm).ok_or(missing)
    }

    /// Waits until a key is wanted and the last fetch is not too young.
    async fn wanted(&self) {
        loop {
            self.wanted.notified().await;
            if self.fetched.borrow().is_old(self.pace.least) {
                return;
            }
        }
    }

    fn due(&self) -> Instant {
        let fetched = self.fetched.borrow();
        let wait = if fetched.failed { self.pace.least } else { self.pace.every };
        fetched.ended.1.map_or_else(Instant::now, |at| at + wait)
    }

    async fn fetch(&self) -> Result<Keys, String> {
        let text = document::fetch(&self.egress, &self.url, LARGEST, self.pace.within).await?;
        Keys::parse(&text)
    }

    fn note(&self, keys: Result<Keys, String>) {
        let failed_before = self.fetched.borrow().failed;
        // A query may hold a secret.
        let url = self.url.as_str().split('?').next().unwrap_or_default();
        match &keys {
            Err(error) if !failed_before => {
                tracing::warn!(url, error, "fetching http.jwt.jwks failed, retrying");
            }
            Ok(_) if failed_before => tracing::info!(url, "http.jwt.jwks is fetched again"),
            _ => {}
        }
        self.fetched.send_modify(|fetched| {
            fetched.ended = (fetched.ended.0 + 1, Some(Instant::now()));
            fetched.failed = keys.is_err();
            if let Ok(keys) = keys {
                fetched.keys = Some(Arc::new(keys));
            }
        });
    }
}
