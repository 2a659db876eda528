//! The stdout sink: writes events as JSON lines to the relay's standard output, which has no other use.

use std::{
    io::{self, Write as _},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;
use tokio::{sync::Mutex, task::spawn_blocking};

use crate::{
    delivery::{Outcome, Reason},
    sink::{Batch, Outgoing, Problem, Report, Sink, body, only, parse_config},
};

/// Writes lines.
#[derive(Debug, Default)]
pub struct Stdout {
    /// Held while writing, so that at most one thread waits for the reader.
    writing: Arc<Mutex<()>>,
}

/// A subscription's config, which has no fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {}

impl Sink for Stdout {
    const KIND: &'static str = "stdout";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        parse_config(config)
    }

    fn destination(&self, _: &Target) -> Option<String> {
        None
    }

    fn deadline(&self, _: &Target) -> Duration {
        Duration::from_secs(15)
    }

    fn batch(&self, _: &Target) -> Option<Batch> {
        Some(Batch::BROKER)
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, _: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let mut lines = String::new();
        for delivery in deliveries {
            lines.push_str(&body::whole(&delivery.marked()));
            lines.push('\n');
        }
        let writing = self.writing.clone().lock_owned().await;
        // The write completes even if this attempt is dropped, and the next attempt waits for it.
        let written = spawn_blocking(move || {
            let _writing = writing;
            let mut stdout = io::stdout().lock();
            stdout.write_all(lines.as_bytes())?;
            stdout.flush()
        });
        let report = match written.await.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => Outcome::Delivered.into(),
            // Some lines may have been written.
            Err(error) => Report::from(Outcome::Retry { reason: Reason::Refused, after: None })
                .with_answer(error)
                .ambiguous(),
        };
        vec![report; deliveries.len()]
    }
}
