//! Since when a stage has failed again and again. A stage that fails once and then works has made progress.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// The stages that fail.
#[derive(Debug, Default)]
pub(super) struct Progress {
    failing: Mutex<BTreeMap<&'static str, Failing>>,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    why: String,
}

impl Progress {
    fn failing(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Failing>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn failed(&self, stage: &'static str, why: String, now: Instant) {
        self.failing().entry(stage).or_insert(Failing { since: now, why: String::new() }).why = why;
    }

    pub(super) fn worked(&self, stage: &'static str) {
        self.failing().remove(stage);
    }

    /// Of the stages that have failed for at least so long, the one that has for longest: for how long, and a
    /// sentence.
    pub(super) fn stuck(&self, least: Duration, now: Instant) -> Option<(Duration, String)> {
        let failing = self.failing();
        let (stage, failing) = failing.iter().min_by_key(|(_, failing)| failing.since)?;
        let length = now.duration_since(failing.since);
        (length >= least).then(|| (length, format!("{stage}: {}", failing.why)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_stuck_when_it_has_failed_for_long_without_a_success() {
        let (progress, began) = (Progress::default(), Instant::now());
        let (least, later) = (Duration::from_secs(10), began + Duration::from_secs(10));
        progress.failed("work", "first".to_owned(), began);
        progress.failed("settle", "other".to_owned(), later);
        assert_eq!(progress.stuck(least, began), None);
        progress.failed("work", "last".to_owned(), later);
        assert_eq!(progress.stuck(least, later), Some((least, "work: last".to_owned())));
        progress.worked("work");
        assert_eq!(progress.stuck(least, later), None, "the other has not failed for long");
        progress.failed("work", "again".to_owned(), later);
        assert_eq!(progress.stuck(least, later), None);
    }
}
