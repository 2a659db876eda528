//! Whether the resolver answers at all. One name without an answer may be the fault of its servers; several
//! names, and no answer for any, are the fault of this machine's resolver.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Names without an answer that show that the resolver is to blame.
const SEVERAL: usize = 2;
/// How long a name without an answer is remembered.
const RECENT: Duration = Duration::from_secs(60);
/// Names that are remembered.
const MOST: usize = 64;

/// What the resolver did lately.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Names without an answer since the last answer for any name.
    unanswered: Mutex<BTreeMap<String, Instant>>,
}

impl Answers {
    /// Notes an answer, also one that there is no such name.
    pub(super) fn answered(&self) {
        self.unanswered.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Notes that a name has no answer. Returns whether the resolver is to blame.
    pub(super) fn unanswered(&self, name: &str, now: Instant) -> bool {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        unanswered.retain(|_, at| now.duration_since(*at) < RECENT);
        if unanswered.len() < MOST || unanswered.contains_key(name) {
            unanswered.insert(name.to_owned(), now);
        }
        unanswered.len() >= SEVERAL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_names_without_an_answer_are_the_resolvers_fault_and_one_is_not() {
        let (answers, now) = (Answers::default(), Instant::now());
        assert!(!answers.unanswered("a.example", now));
        assert!(!answers.unanswered("a.example", now), "the same name again says nothing new");
        assert!(answers.unanswered("b.example", now));
        answers.answered();
        assert!(!answers.unanswered("b.example", now), "the resolver works");
        assert!(!answers.unanswered("a.example", now + RECENT), "long ago");
    }
}
