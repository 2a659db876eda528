//! The stdout sink: events as JSON lines on the relay's standard output, which it uses for nothing else.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, sync::Mutex};

use super::{Batch, Report, Sink, body, only, parse_config};
use crate::{
    delivery::Delivery,
    verdict::{Outcome, Reason},
};

/// Writes lines.
#[derive(Debug, Default)]
pub struct Stdout {
    writing: Mutex<()>,
}

/// A subscription's config: it has no fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {}

impl Sink for Stdout {
    const KIND: &'static str = "stdout";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, String> {
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

    async fn send(&self, target: &Target, delivery: &Delivery) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, _: &Target, deliveries: &[Delivery]) -> Vec<Report> {
        let mut lines = String::new();
        for delivery in deliveries {
            lines.push_str(&body::whole(&delivery.event));
            lines.push('\n');
        }
        let _writing = self.writing.lock().await;
        let mut stdout = tokio::io::stdout();
        let written = async {
            stdout.write_all(lines.as_bytes()).await?;
            stdout.flush().await
        };
        let report = match written.await {
            Ok(()) => Outcome::Delivered.into(),
            // Some lines may be out already.
            Err(error) => Report::from(Outcome::Retry { reason: Reason::Refused, after: None }).saying(error).ambiguous(),
        };
        vec![report; deliveries.len()]
    }
}
