//! Remembers topics that brokers report as unknown. A starting broker does not know all topics yet, so a
//! topic counts as gone only after a time. Pure.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Time after which a topic that is still unknown counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(10);
/// Time after which a topic is no longer remembered as unknown.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// Most topics remembered.
const MOST_TOPICS: usize = 4_096;

/// The time since which each topic is unknown.
#[derive(Debug, Default)]
pub(super) struct Missing(HashMap<String, Instant>);

impl Missing {
    /// Records that a topic is unknown. Returns whether it counts as gone.
    pub(super) fn is_gone(&mut self, topic: &str, now: Instant) -> bool {
        if let Some(since) = self.0.get(topic)
            && now < *since + FORGOTTEN_AFTER
        {
            return now >= *since + GONE_AFTER;
        }
        if self.0.len() >= MOST_TOPICS {
            self.0.clear();
        }
        self.0.insert(topic.to_owned(), now);
        false
    }

    /// Records that a topic has accepted a record.
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
        assert!(!missing.is_gone("orders", now + GONE_AFTER / 2));
        assert!(missing.is_gone("orders", now + GONE_AFTER));
        assert!(!missing.is_gone("payments", now + GONE_AFTER), "each topic has its own time");
    }

    #[test]
    fn the_time_restarts_for_a_topic_that_was_found_or_was_missing_long_ago() {
        let (mut missing, now) = (Missing::default(), Instant::now());
        assert!(!missing.is_gone("orders", now));
        missing.found("orders");
        assert!(!missing.is_gone("orders", now + GONE_AFTER));
        assert!(!missing.is_gone("orders", now + GONE_AFTER + FORGOTTEN_AFTER));
    }
}
