//! The event that all systems post: the same shape and about 320 bytes for all.

use std::env;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// `type` of every body.
pub(crate) const TOPIC: &str = "bench.orders.created";
/// `timestamp` of every body that does not come from pgoutbox, which writes its own.
pub(crate) const TIMESTAMP: &str = "2026-01-01T00:00:00.000000Z";
/// Length of the padding, for a body of about 320 bytes.
pub(crate) const PADDING: usize = 210;

/// A body, which is also the payload of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Event {
    r#type: String,
    timestamp: String,
    data: Data,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Data {
    n: usize,
    padding: String,
}

impl Event {
    /// Event number `n` of the backlog, from 1.
    pub(crate) fn new(n: usize) -> Self {
        Self {
            r#type: TOPIC.to_owned(),
            timestamp: TIMESTAMP.to_owned(),
            data: Data { n, padding: "x".repeat(PADDING) },
        }
    }
}

/// The environment of a process: addresses of database and receiver, and the backlog.
pub(crate) fn environment(database: &str, receiver: &str, jobs: usize) -> Vec<(&'static str, String)> {
    vec![
        ("DATABASE_URL", database.to_owned()),
        ("RECEIVER_URL", receiver.to_owned()),
        ("JOBS", jobs.to_string()),
        ("TOPIC", TOPIC.to_owned()),
        ("TIMESTAMP", TIMESTAMP.to_owned()),
        ("PADDING", PADDING.to_string()),
    ]
}

/// The value of one of these settings.
#[expect(
    clippy::disallowed_methods,
    reason = "a part of the measurement gets its settings from the process that starts it"
)]
pub(crate) fn setting(name: &str) -> anyhow::Result<String> {
    env::var(name).with_context(|| format!("reading {name}"))
}
