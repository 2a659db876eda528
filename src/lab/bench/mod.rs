//! `pgoutbox bench`: each figure with its floor, measured on the same machine in the same minute.
//!
//! A floor is what the machine can do without pgoutbox: an HTTP client without a database, PostgreSQL
//! alone, a table without triggers. Floor and figure take turns (A-B-A-B), each time on a fresh copy of a
//! freshly migrated database in a private, durable PostgreSQL. The report shows the medians of the rounds,
//! their extremes, and the ratio of the medians. Everything runs on loopback and in a temporary directory;
//! all load is finite and every wait has a deadline.
//!
//! `stage` starts and cleans up, `running` is a relay, `receiving` the receiver of webhooks, `replay` the
//! HTTP client without a relay, `writers` publish, `report` prints; each other file is one row
//! (in `live/`, those about live clients).

mod stage;
mod running;
mod receiving;
mod replay;
mod writers;
mod machine;
mod report;

mod webhook_drain;
mod noop_drain;
mod deep_backlog;
mod cost;
mod distant;
mod isolation;
mod latency;
mod publishers_tax;
mod fanout;
mod ordered;
mod partitions;
mod matching;
mod held_transaction;
mod held_log;
mod idle;
mod memory;
mod hostile;
mod live;
#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    allow(dead_code, unused_imports, reason = "a build without brokers has none to measure")
)]
mod sinks;

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use report::Report;
use stage::Stage;

/// What to measure and how to print it.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Amount of load.
    pub size: Size,
    /// Whether to print one JSON object a line instead of a table.
    pub json: bool,
    /// Rows to measure; empty for all.
    pub only: Vec<Row>,
    /// Duration of the open transaction in [`Row::HeldTransaction`]; none for the default of the size.
    pub held: Option<Duration>,
}

/// Amount of load.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Size {
    /// Takes about an hour.
    #[default]
    Full,
    /// Takes a few minutes.
    Quick,
    /// Takes a few seconds, for tests: the figures mean nothing.
    Tiny,
}

/// Rows of the report, in the order of measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Row {
    /// Drain a backlog to one webhook receiver.
    WebhookDrain,
    /// Drain a backlog to a sink that does nothing.
    NoopDrain,
    /// Drain the first part of a backlog of millions.
    DeepBacklog,
    /// CPU, WAL and dead tuples of a delivered event.
    Cost,
    /// Drain a backlog to a webhook receiver that is 50 ms away.
    Distant,
    /// Time from commit to receipt.
    Latency,
    /// Time from commit to receipt beside subscriptions that hang and organizations with a backlog.
    Isolation,
    /// Cost for publishers.
    PublishersTax,
    /// Ten subscriptions for each event.
    Fanout,
    /// Drain a backlog in the order of keys.
    Ordered,
    /// Many subscriptions of which few match an event.
    Matching,
    /// Delivery while a transaction is held open.
    HeldTransaction,
    /// Events after millions that were routed while a transaction was open.
    HeldLog,
    /// A log with many partitions.
    Partitions,
    /// Queries and CPU of relays that have nothing to do.
    Idle,
    /// Memory with many subscriptions and a backlog, and with destinations that answer without end.
    Memory,
    /// Time from commit to receipt by a live client.
    LiveLatency,
    /// Many live clients that follow the same events.
    LiveFanout,
    /// Memory of idle live clients.
    LiveMemory,
    /// Drain a backlog to each kind of sink.
    Sinks,
}

impl Row {
    const ALL: [Self; 20] = [
        Self::WebhookDrain,
        Self::NoopDrain,
        Self::DeepBacklog,
        Self::Cost,
        Self::Distant,
        Self::Latency,
        Self::Isolation,
        Self::PublishersTax,
        Self::Fanout,
        Self::Ordered,
        Self::Matching,
        Self::HeldTransaction,
        Self::HeldLog,
        Self::Partitions,
        Self::Idle,
        Self::Memory,
        Self::LiveLatency,
        Self::LiveFanout,
        Self::LiveMemory,
        Self::Sinks,
    ];

    /// Name in the report.
    fn name(self) -> &'static str {
        match self {
            Self::WebhookDrain => "webhook_drain",
            Self::NoopDrain => "noop_drain",
            Self::DeepBacklog => "deep_backlog",
            Self::Cost => "cost",
            Self::Distant => "distant",
            Self::Latency => "latency",
            Self::Isolation => "isolation",
            Self::PublishersTax => "publishers_tax",
            Self::Fanout => "fanout",
            Self::Ordered => "ordered",
            Self::Matching => "matching",
            Self::HeldTransaction => "held_transaction",
            Self::HeldLog => "held_log",
            Self::Partitions => "partitions",
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::LiveLatency => "live_latency",
            Self::LiveFanout => "live_fanout",
            Self::LiveMemory => "live_memory",
            Self::Sinks => "sinks",
        }
    }
}

const CLEANED_UP: &str = "; PostgreSQL is stopped and its directory removed";

/// The numbers of a [`Size`].
#[derive(Debug, Clone)]
struct Sizes {
    rounds: u32,
    webhook_events: u32,
    noop_events: u32,
    deep_events: u32,
    idle_events: u32,
    hanging: u32,
    busy_for: Duration,
    writers: u32,
    write_for: Duration,
    fanout_events: u32,
    match_among: usize,
    match_for: Duration,
    held_for: Duration,
    held_backlog: u32,
    held_events: u32,
    partition_looks: u32,
    remembered_events: u32,
    hostile: usize,
    idle_databases: u32,
    idle_for: Duration,
    live_clients: u32,
    live_events: u32,
    idle_clients: u32,
    sink_events: u32,
}

impl Sizes {
    fn of(options: &Options) -> Self {
        let mut sizes = match options.size {
            Size::Full => Self {
                rounds: 3,
                webhook_events: 200_000,
                noop_events: 200_000,
                deep_events: 10_000_000,
                idle_events: 200,
                hanging: 300,
                busy_for: Duration::from_secs(10),
                writers: 32,
                write_for: Duration::from_secs(5),
                fanout_events: 20_000,
                match_among: 10_000,
                match_for: Duration::from_millis(500),
                held_for: Duration::from_secs(60),
                held_backlog: 100_000,
                held_events: 4_000_000,
                partition_looks: 3_000,
                remembered_events: 1_000_000,
                hostile: 30,
                idle_databases: 20,
                idle_for: Duration::from_secs(60),
                live_clients: 500,
                live_events: 2_000,
                idle_clients: 2_000,
                sink_events: 40_000,
            },
            Size::Quick => Self {
                rounds: 2,
                webhook_events: 20_000,
                noop_events: 40_000,
                deep_events: 400_000,
                idle_events: 60,
                hanging: 300,
                busy_for: Duration::from_secs(2),
                writers: 32,
                write_for: Duration::from_secs(1),
                fanout_events: 5_000,
                match_among: 10_000,
                match_for: Duration::from_millis(100),
                held_for: Duration::from_secs(10),
                held_backlog: 10_000,
                held_events: 400_000,
                partition_looks: 1_000,
                remembered_events: 100_000,
                hostile: 30,
                idle_databases: 20,
                idle_for: Duration::from_secs(30),
                live_clients: 500,
                live_events: 2_000,
                idle_clients: 2_000,
                sink_events: 10_000,
            },
            Size::Tiny => Self {
                rounds: 1,
                webhook_events: 200,
                noop_events: 300,
                deep_events: 900,
                idle_events: 5,
                hanging: 10,
                busy_for: Duration::from_millis(100),
                writers: 4,
                write_for: Duration::from_millis(100),
                fanout_events: 30,
                match_among: 300,
                match_for: Duration::from_millis(5),
                held_for: Duration::from_secs(1),
                held_backlog: 200,
                held_events: 600,
                partition_looks: 20,
                remembered_events: 300,
                hostile: 3,
                idle_databases: 2,
                idle_for: Duration::from_secs(1),
                live_clients: 5,
                live_events: 30,
                idle_clients: 20,
                sink_events: 200,
            },
        };
        sizes.held_for = options.held.unwrap_or(sizes.held_for);
        sizes
    }
}

/// Runs the benchmark and removes everything at its end or on a signal. Figures go to standard output,
/// messages to standard error.
///
/// # Errors
/// When PostgreSQL is missing, something does not start or does not end in time, or on Ctrl-C.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        // A signal drops this future with all it owns: relays, receivers, PostgreSQL and its
        // directory.
        measured = measure(&options) => measured,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted{CLEANED_UP}")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated{CLEANED_UP}")),
    }
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures mean nothing; use cargo run --release");
    }
    say("starting a private PostgreSQL in a temporary directory, fsync on");
    let stage = Stage::start(Sizes::of(options)).await?;
    let mut report = Report::open(options.json, &machine::describe(&stage).await?)?;
    for row in Row::ALL.into_iter().filter(|row| options.only.is_empty() || options.only.contains(row)) {
        say(&format!("measuring {}", row.name()));
        match row {
            Row::WebhookDrain => webhook_drain::measure(&stage, &mut report).await,
            Row::NoopDrain => noop_drain::measure(&stage, &mut report).await,
            Row::DeepBacklog => deep_backlog::measure(&stage, &mut report).await,
            Row::Cost => cost::measure(&stage, &mut report).await,
            Row::Distant => distant::measure(&stage, &mut report).await,
            Row::Latency => latency::measure(&stage, &mut report).await,
            Row::Isolation => isolation::measure(&stage, &mut report).await,
            Row::PublishersTax => publishers_tax::measure(&stage, &mut report).await,
            Row::Fanout => fanout::measure(&stage, &mut report).await,
            Row::Ordered => ordered::measure(&stage, &mut report).await,
            Row::Matching => matching::measure(&stage, &mut report),
            Row::HeldTransaction => held_transaction::measure(&stage, &mut report).await,
            Row::HeldLog => held_log::measure(&stage, &mut report).await,
            Row::Partitions => partitions::measure(&stage, &mut report).await,
            Row::Idle => idle::measure(&stage, &mut report).await,
            Row::Memory => memory::measure(&stage, &mut report).await,
            Row::LiveLatency => live::latency::measure(&stage, &mut report).await,
            Row::LiveFanout => live::fanout::measure(&stage, &mut report).await,
            Row::LiveMemory => live::idle::measure(&stage, &mut report).await,
            Row::Sinks => sinks::measure(&stage, &mut report).await,
        }
        .with_context(|| format!("measuring {}", row.name()))?;
    }
    stage.stop().await
}

/// Prints a message to standard error.
fn say(text: &str) {
    // Measuring goes on when nobody reads it.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("{text}\n").as_bytes());
}

/// Waits with a deadline.
async fn within<T, E: Into<anyhow::Error>>(
    limit: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result.map_err(Into::into).context(doing),
        Err(_) => anyhow::bail!("{doing}: not done within {} s", limit.as_secs()),
    }
}

/// Polls a counter every millisecond until it reaches `wanted`.
async fn reach(
    count: impl Fn() -> u64,
    wanted: u64,
    limit: Duration,
    doing: &'static str,
) -> anyhow::Result<()> {
    let mut polls = tokio::time::interval(Duration::from_millis(1));
    polls.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let reached = tokio::time::timeout(limit, async {
        while count() < wanted {
            polls.tick().await;
        }
    });
    let reached = reached.await;
    reached.map_err(|_| anyhow::anyhow!("{doing}: {} of {wanted} within {} s", count(), limit.as_secs()))
}

/// A count per second.
fn per_second(count: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts here stay far below 2^52")]
    let count = count as f64;
    count / took.as_secs_f64()
}
