//! Topics that the cluster does not know, and when that is believed: brokers that start do not know all of them yet. Pure.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// A topic that was missing for so long, as far as attempts say, is gone.
const BELIEVED_AFTER: Duration = Duration::from_secs(10);
/// A time so long ago says nothing about now.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Topics remembered at most.
const REMEMBERED: usize = 4_096;

/// Since when topics are missing.
#[derive(Debug, Default)]
pub(super) struct Missing(HashMap<String, Instant>);

impl Missing {
    /// Notes that a topic is missing. Returns whether it is gone.
    pub(super) fn is_gone(&mut self, topic: &str, now: Instant) -> bool {
        if let Some(since) = self.0.get(topic)
            && now < *since + FORGOTTEN_AFTER
        {
            return now >= *since + BELIEVED_AFTER;
        }
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        self.0.insert(topic.to_owned(), now);
        false
    }

    /// It has taken a record.
    pub(super) fn found(&mut self, topic: &str) {
        if !self.0.is_empty() {
            self.0.remove(topic);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_gone_once_it_was_missing_for_long_enough() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        assert!(!missing.is_gone("orders", now));
        assert!(!missing.is_gone("orders", now + BELIEVED_AFTER / 2));
        assert!(missing.is_gone("orders", now + BELIEVED_AFTER));
        assert!(!missing.is_gone("payments", now + BELIEVED_AFTER), "each for itself");
    }

    #[test]
    fn a_topic_that_was_found_or_was_missing_long_ago_gets_its_time_anew() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        assert!(!missing.is_gone("orders", now));
        missing.found("orders");
        assert!(!missing.is_gone("orders", now + BELIEVED_AFTER));
        assert!(!missing.is_gone("orders", now + BELIEVED_AFTER + FORGOTTEN_AFTER));
    }
}
