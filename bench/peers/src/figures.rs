//! What is asked for, and what was measured.

use std::{path::PathBuf, time::Duration};

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Number of events in the backlog.
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) jobs: u32,
    /// Number of rounds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) rounds: u32,
    /// Measure only systems whose names contain this, and the floor; repeatable.
    #[arg(long)]
    pub(crate) only: Vec<String>,
    /// Number of kills of each system, each in its own drain.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) kills: u32,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(crate) json: bool,
    /// Deadline of one drain, in seconds.
    #[arg(long, default_value_t = 300)]
    pub(crate) limit: u64,
    /// Binary of pgoutbox; by default the release build of this checkout.
    #[arg(long)]
    pub(crate) pgoutbox: Option<PathBuf>,
    /// Folder in which npm has installed; by default target/peers/node of this checkout.
    #[arg(long)]
    pub(crate) node: Option<PathBuf>,
}

/// Figures of a drain.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drain {
    /// Events per second at the receiver, from the first request to the last event.
    pub(crate) rate: f64,
    /// Time from the start of the process to the first request.
    pub(crate) start: Duration,
    /// Time from the last event until nothing is left in the database.
    pub(crate) settled: Duration,
    pub(crate) repeated: usize,
    /// Mean length of a body (bytes).
    pub(crate) body: u64,
    /// Processor time of the workers and of PostgreSQL.
    pub(crate) worker_cpu: Duration,
    pub(crate) postgres_cpu: Duration,
}

/// Figures of a kill.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kill {
    /// Events received before the kill.
    pub(crate) at: usize,
    /// Jobs that the dead process held, as the database shows.
    pub(crate) held: i64,
    /// Events that were received twice.
    pub(crate) repeated: usize,
    /// Events received only after the locks had ended.
    pub(crate) late: usize,
    /// Time from the kill until every event was received; `None` if locks were ended by hand.
    pub(crate) whole: Option<Duration>,
}
