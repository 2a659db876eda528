//! How the sources of a process stand, for probes.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures_util::future::join_all;

use crate::{http::Readiness, relay::Health};

/// Longest time for one source to say how it stands, a little less than that of the probe.
const ANSWER: Duration = Duration::from_millis(2_500);

/// How one source stands.
#[derive(Debug, Clone)]
pub(super) struct Place(Arc<ArcSwap<Standing>>);

#[derive(Debug)]
enum Standing {
    /// It has no relay. Why, as a sentence.
    Down(String),
    Running(Health),
}

impl Place {
    /// One that has not been started yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Standing::Down("starting".to_owned()))))
    }

    pub(super) fn runs(&self, health: Health) {
        self.0.store(Arc::new(Standing::Running(health)));
    }

    pub(super) fn is_down(&self, why: String) {
        self.0.store(Arc::new(Standing::Down(why)));
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(**self.0.load(), Standing::Running(_))
    }
}

impl Readiness for Place {
    async fn ready(&self) -> Result<(), String> {
        match &*self.0.load_full() {
            Standing::Down(why) => Err(why.clone()),
            Standing::Running(health) => health.ready().await,
        }
    }

    fn state(&self) -> serde_json::Value {
        match &*self.0.load_full() {
            Standing::Down(why) => serde_json::json!({ "down": why }),
            Standing::Running(health) => health.state(),
        }
    }
}

/// How all of them stand together.
#[derive(Debug, Clone)]
pub(super) struct All(Arc<Vec<(String, Place)>>);

impl All {
    pub(super) fn new(places: Vec<(String, Place)>) -> Self {
        Self(Arc::new(places))
    }
}

impl Readiness for All {
    /// While one of them works the process is ready: ending it would help none and cost that one.
    async fn ready(&self) -> Result<(), String> {
        let asked = self.0.iter().map(async |(name, place)| {
            match tokio::time::timeout(ANSWER, place.ready()).await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => Err(format!("{name}: {why}")),
                Err(_) => Err(format!("{name}: no answer")),
            }
        });
        let answers = join_all(asked).await;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        let why: Vec<String> = answers.into_iter().filter_map(Result::err).collect();
        Err(format!("no source is ready: {}", why.join("; ")))
    }

    fn state(&self) -> serde_json::Value {
        let of_each = |(name, place): &(String, Place)| (name.clone(), place.state());
        serde_json::json!({ "sources": self.0.iter().map(of_each).collect::<serde_json::Map<_, _>>() })
    }
}
