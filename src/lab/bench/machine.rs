//! Describes the machine, versions and settings of a measurement.

use std::fs;

use anyhow::Context;
use serde_json::{Value, json};

use super::stage::{PAYLOAD, Stage};
use crate::relay::Settings;

/// Settings of PostgreSQL that affect the figures. All have their defaults.
const SETTINGS: [&str; 7] = [
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
];

/// The machine, versions and settings.
pub(super) async fn describe(stage: &Stage) -> anyhow::Result<Value> {
    let mut postgres = serde_json::Map::new();
    for name in SETTINGS.iter().chain(&["server_version"]) {
        let value: String = sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(stage.server())
            .await
            .with_context(|| format!("asking PostgreSQL for {name}"))?;
        postgres.insert((*name).to_owned(), Value::String(value));
    }
    let relay = Settings::default();
    let sizes = &stage.sizes;
    Ok(json!({
        "pgoutbox": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "debug" } else { "release" },
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": line_of("/proc/cpuinfo", "model name"),
        "memory": line_of("/proc/meminfo", "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "load_before": read("/proc/loadavg"),
        "postgres": postgres,
        "permits": relay.permits,
        "permits_per_subscription": relay.permits_per_subscription,
        "attempt_log": format!("{:?}", relay.attempt_log).to_lowercase(),
        "payload_bytes": PAYLOAD,
        "rounds": sizes.rounds,
    }))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first line `name : value` in a file of the kernel.
fn line_of(path: &str, name: &str) -> String {
    let text = read(path);
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines
        .into_iter()
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
        .unwrap_or_default()
}
