//! A sink that records attempts and answers as the test decides.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use pgoutbox::{
    delivery::Outcome,
    sink::{Outgoing, Problem, Report, Sink},
};
use tokio::sync::Notify;
use uuid::Uuid;

/// An attempt as the sink saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) event: Uuid,
    pub(crate) position: i64,
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) subscription: String,
    pub(crate) attempt: u32,
    pub(crate) occasion: Option<pgoutbox::sink::Occasion>,
    pub(crate) replay: Option<i64>,
}

type Answer = Arc<dyn Fn(&Seen) -> Outcome + Send + Sync>;

/// Records all attempts in order. Subscribe with the sink `recorder`; with the config `{"hang": true}` it
/// never answers.
#[derive(Clone)]
pub(crate) struct Recorder {
    seen: Arc<Mutex<Vec<Seen>>>,
    changed: Arc<Notify>,
    answer: Answer,
    /// While it is locked exclusively, attempts wait before they answer.
    pub(crate) gate: Arc<tokio::sync::RwLock<()>>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recorder").finish_non_exhaustive()
    }
}

impl Recorder {
    /// A recorder that reports success.
    pub(crate) fn new() -> Self {
        Self::answering(|_| Outcome::Delivered)
    }

    pub(crate) fn answering(answer: impl Fn(&Seen) -> Outcome + Send + Sync + 'static) -> Self {
        Self { seen: Arc::default(), changed: Arc::default(), answer: Arc::new(answer), gate: Arc::default() }
    }

    /// All attempts so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits until this many attempts were seen, at most 30 s.
    pub(crate) async fn wait_for(&self, count: usize) -> Vec<Seen> {
        self.wait_until(|seen| seen.len() >= count).await
    }

    /// Waits until the attempts satisfy a condition, at most 30 s.
    pub(crate) async fn wait_until(&self, enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let waiting = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let seen = self.seen();
                if enough(&seen) {
                    return seen;
                }
                changed.await;
            }
        };
        match tokio::time::timeout(Duration::from_secs(30), waiting).await {
            Ok(seen) => seen,
            Err(_) => panic!(
                "not within 30 s; the last of {} attempts seen: {:#?}",
                self.seen().len(),
                self.seen().iter().rev().take(10).collect::<Vec<_>>()
            ),
        }
    }
}

impl Sink for Recorder {
    const KIND: &'static str = "recorder";
    type Target = bool;

    fn target(&self, config: &serde_json::Value) -> Result<bool, Problem> {
        if config.get("bad").is_some() {
            return Err("config.bad: this target is bad; leave it out".into());
        }
        Ok(config.get("hang").is_some())
    }

    fn destination(&self, _: &bool) -> Option<String> {
        None
    }

    async fn send(&self, &hangs: &bool, delivery: &Outgoing) -> Report {
        let seen = Seen {
            event: delivery.event.id,
            position: delivery.event.position.0,
            topic: delivery.event.topic.clone(),
            payload: delivery.event.payload.clone(),
            subscription: delivery.subscription.to_string(),
            attempt: delivery.attempt,
            occasion: delivery.occasion,
            replay: delivery.replay.map(|replay| replay.0),
        };
        self.seen.lock().unwrap().push(seen.clone());
        self.changed.notify_waiters();
        if hangs {
            std::future::pending::<()>().await;
        }
        let _open = self.gate.read().await;
        (self.answer)(&seen).into()
    }

    fn deadline(&self, _: &bool) -> Duration {
        Duration::from_secs(15)
    }
}
