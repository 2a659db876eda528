//! Describes the machine, versions and settings of a measurement.

use std::fs;

use serde_json::{Map, Value, json};

use crate::{
    figures::Options,
    postgres::{Postgres, output},
};

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

pub(crate) async fn describe(postgres: &Postgres, options: &Options) -> anyhow::Result<Value> {
    let mut settings = Map::new();
    for name in ["server_version"].iter().chain(&SETTINGS) {
        settings.insert((*name).to_owned(), postgres.setting(name).await?.into());
    }
    let folder = crate::project();
    let commit = output("git", &["-C", &folder.to_string_lossy(), "describe", "--always", "--dirty"]);
    Ok(json!({
        "date": output("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        "commit": commit,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "cpu": line_of("/proc/cpuinfo", "model name"),
        "memory": line_of("/proc/meminfo", "MemTotal"),
        "kernel": read("/proc/sys/kernel/osrelease"),
        "load_before": read("/proc/loadavg"),
        "postgres": settings,
        "jobs": options.jobs,
        "rounds": options.rounds,
    }))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The value of the first line `name : value` in a file of the kernel.
fn line_of(path: &str, name: &str) -> String {
    let text = read(path);
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.trim() == name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}
