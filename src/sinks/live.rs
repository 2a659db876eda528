//! The sink of channels, which live clients join by name. Nothing is ever sent to it: routing leaves channels
//! out, and clients read the log themselves.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    delivery::{Outcome, Reason},
    sink::{Outgoing, Problem, Report, Sink, parse_config},
};

/// Makes a subscription a channel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Live;

/// A channel's config, which has no fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {}

impl Sink for Live {
    const KIND: &'static str = "live";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        parse_config(config)
    }

    fn destination(&self, _: &Target) -> Option<String> {
        None
    }

    fn deadline(&self, _: &Target) -> Duration {
        Duration::ZERO
    }

    async fn send(&self, _: &Target, _: &Outgoing) -> Report {
        // Never called. It would be given back, and not be lost.
        Outcome::Retry { reason: Reason::LeaseLost, after: None }.into()
    }
}
