//! What relays tell each other of their probes, by NOTIFY. Nothing depends on it: without it, each relay
//! probes for itself. Anybody who may connect can notify, so news delay or hasten a probe and no more.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use super::About;
use crate::delivery::SubscriptionId;

/// Channel of the news.
pub(in crate::relay) const CHANNEL: &str = "outbox_breakers";
/// News that wait to be sent. What is beyond is not sent.
const WAITING: usize = 1_000;
/// Longest name of a destination that is sent (bytes).
const LONGEST: usize = 2_000;

/// What a relay tells of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::relay) enum News {
    /// The relay begins a probe.
    Probing,
    /// Its probe failed.
    Failed,
    /// Its probe succeeded.
    Works,
}

/// The text of a notification, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Message {
    from: Uuid,
    about: Subject,
    news: News,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Subject {
    Host(String),
    Subscription(i64),
}

/// News of this relay that are not sent yet: the newest about each breaker.
#[derive(Debug)]
pub(in crate::relay) struct Unsent {
    from: Uuid,
    waiting: Mutex<HashMap<About, News>>,
    /// Notified when there is something to send.
    pub(in crate::relay) some: Notify,
}

impl Unsent {
    pub(in crate::relay) fn new() -> Self {
        Self { from: Uuid::new_v4(), waiting: Mutex::default(), some: Notify::new() }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<About, News>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::relay) fn add(&self, about: About, news: News) {
        let is_short = match &about {
            About::Host(host) => host.len() <= LONGEST,
            About::Subscription(_) => true,
        };
        let mut waiting = self.waiting();
        if is_short && (waiting.len() < WAITING || waiting.contains_key(&about)) {
            waiting.insert(about, news);
            self.some.notify_one();
        }
    }

    /// Takes what waits, as the texts of notifications.
    pub(in crate::relay) fn take(&self) -> Vec<String> {
        let waiting = std::mem::take(&mut *self.waiting());
        let messages = waiting.into_iter().map(|(about, news)| {
            let about = match about {
                About::Host(host) => Subject::Host(host.to_string()),
                About::Subscription(id) => Subject::Subscription(id.0),
            };
            serde_json::to_string(&Message { from: self.from, about, news })
        });
        messages.filter_map(Result::ok).collect()
    }

    /// Reads a notification; `None` if it is this relay's own, or no news.
    pub(in crate::relay) fn read(&self, payload: &str) -> Option<(About, News)> {
        let message: Message = serde_json::from_str(payload).ok()?;
        let about = match message.about {
            Subject::Host(host) => About::Host(host.into()),
            Subject::Subscription(id) => About::Subscription(SubscriptionId(id)),
        };
        (message.from != self.from).then_some((about, message.news))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_are_read_by_others_and_not_by_the_sender() {
        let (one, other) = (Unsent::new(), Unsent::new());
        one.add(About::Subscription(SubscriptionId(7)), News::Probing);
        one.add(About::Host("https://a".into()), News::Probing);
        one.add(About::Host("https://a".into()), News::Failed);
        let mut sent = one.take();
        sent.sort();
        assert_eq!(one.take(), Vec::<String>::new());
        assert!(sent.iter().all(|text| one.read(text).is_none()));
        let read: Vec<_> = sent.iter().filter_map(|text| other.read(text)).collect();
        assert_eq!(
            read,
            [
                (About::Host("https://a".into()), News::Failed),
                (About::Subscription(SubscriptionId(7)), News::Probing),
            ]
        );
    }

    #[test]
    fn what_is_no_news_is_ignored_and_much_of_it_is_not_kept() {
        let unsent = Unsent::new();
        for text in ["", "due", "{}", "[]", r#"{"from":1}"#] {
            assert_eq!(unsent.read(text), None, "{text}");
        }
        unsent.add(About::Host("x".repeat(LONGEST + 1).into()), News::Works);
        for id in 0..2_000 {
            unsent.add(About::Subscription(SubscriptionId(id)), News::Works);
        }
        assert_eq!(unsent.take().len(), WAITING);
    }
}
