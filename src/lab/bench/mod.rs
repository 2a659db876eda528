//! `pgoutbox bench`: each figure beside its floor, measured on the same machine in the same minute.
//!
//! A floor is what the machine can do without pgoutbox: the same HTTP client without a database, PostgreSQL alone, a table
//! without triggers. Floor and figure take turns (A-B-A-B), each time on a fresh copy of a freshly migrated database in a
//! private, durable PostgreSQL; shown are the medians of the rounds, their extremes, and the ratio of the medians.
//! Everything runs on loopback and in a temporary directory; all load has an end and every wait a deadline.
//!
//! `stage` starts and clears away, `running` is a relay, `receiving` the far end of webhooks, `replay` the HTTP client without
//! a relay, `writers` publish, `report` prints; the other files are a row each.

mod stage;
mod running;
mod receiving;
mod replay;
mod writers;
mod machine;
mod report;

mod webhook_drain;
mod noop_drain;
mod latency;
mod publishers_tax;
mod fanout;
mod matching;
mod held_transaction;
#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(dead_code, unused_imports, reason = "a build without brokers has none to measure")
)]
mod sinks;

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use report::Report;
use stage::Stage;

/// What to measure, and how it is shown.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How much of it.
    pub size: Size,
    /// One JSON object a line instead of a table.
    pub json: bool,
    /// Only these rows; empty: all.
    pub only: Vec<Row>,
    /// How long the transaction of [`Row::HeldTransaction`] stays open; otherwise the size says it.
    pub held: Option<Duration>,
}

/// How much is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Size {
    /// Some ten minutes.
    #[default]
    Full,
    /// Less than two minutes.
    Quick,
    /// A few seconds: shows that everything runs; the figures mean nothing.
    Tiny,
}

/// The rows, in the order in which they are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Row {
    /// A backlog to one receiver of webhooks.
    WebhookDrain,
    /// A backlog to a sink that does nothing.
    NoopDrain,
    /// From commit to receipt.
    Latency,
    /// What publishers pay.
    PublishersTax,
    /// Ten subscriptions for each event.
    Fanout,
    /// Many subscriptions of which few want an event.
    Matching,
    /// While a transaction is held open.
    HeldTransaction,
    /// A backlog to each kind of broker.
    Sinks,
}

impl Row {
    const ALL: [Self; 8] = [
        Self::WebhookDrain,
        Self::NoopDrain,
        Self::Latency,
        Self::PublishersTax,
        Self::Fanout,
        Self::Matching,
        Self::HeldTransaction,
        Self::Sinks,
    ];

    /// As it is printed.
    fn name(self) -> &'static str {
        match self {
            Self::WebhookDrain => "webhook_drain",
            Self::NoopDrain => "noop_drain",
            Self::Latency => "latency",
            Self::PublishersTax => "publishers_tax",
            Self::Fanout => "fanout",
            Self::Matching => "matching",
            Self::HeldTransaction => "held_transaction",
            Self::Sinks => "sinks",
        }
    }
}

/// The numbers behind a [`Size`].
#[derive(Debug, Clone)]
struct Sizes {
    rounds: u32,
    webhook_events: u32,
    noop_events: u32,
    idle_events: u32,
    busy_for: Duration,
    writers: u32,
    write_for: Duration,
    fanout_events: u32,
    match_for: Duration,
    held_for: Duration,
    held_backlog: u32,
    sink_events: u32,
}

impl Sizes {
    fn of(options: &Options) -> Self {
        let mut sizes = match options.size {
            Size::Full => Self {
                rounds: 3,
                webhook_events: 200_000,
                noop_events: 200_000,
                idle_events: 200,
                busy_for: Duration::from_secs(10),
                writers: 32,
                write_for: Duration::from_secs(5),
                fanout_events: 20_000,
                match_for: Duration::from_millis(500),
                held_for: Duration::from_secs(60),
                held_backlog: 100_000,
                sink_events: 40_000,
            },
            Size::Quick => Self {
                rounds: 2,
                webhook_events: 20_000,
                noop_events: 40_000,
                idle_events: 60,
                busy_for: Duration::from_secs(2),
                writers: 32,
                write_for: Duration::from_secs(1),
                fanout_events: 5_000,
                match_for: Duration::from_millis(100),
                held_for: Duration::from_secs(10),
                held_backlog: 10_000,
                sink_events: 10_000,
            },
            Size::Tiny => Self {
                rounds: 1,
                webhook_events: 200,
                noop_events: 300,
                idle_events: 5,
                busy_for: Duration::from_millis(100),
                writers: 4,
                write_for: Duration::from_millis(100),
                fanout_events: 30,
                match_for: Duration::from_millis(5),
                held_for: Duration::from_millis(300),
                held_backlog: 200,
                sink_events: 200,
            },
        };
        sizes.held_for = options.held.unwrap_or(sizes.held_for);
        sizes
    }
}

/// Measures until it is done or interrupted, and leaves nothing behind. Figures go to standard output, talk to standard error.
///
/// # Errors
/// When PostgreSQL is missing, something does not start or does not end in time, or on Ctrl-C.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    tokio::select! {
        // Dropped with all it holds when a signal comes first: relays, receivers, PostgreSQL and its directory.
        measured = measure(&options) => measured,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted; PostgreSQL is stopped and its directory removed")),
        _ = terminate.recv() => Err(anyhow::anyhow!("terminated; PostgreSQL is stopped and its directory removed")),
    }
}

async fn measure(options: &Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures mean nothing; use cargo run --release");
    }
    say("starting a private PostgreSQL in a temporary directory, fsync on");
    let stage = Stage::set(Sizes::of(options)).await?;
    let mut report = Report::open(options.json, &machine::describe(&stage).await?)?;
    for row in Row::ALL.into_iter().filter(|row| options.only.is_empty() || options.only.contains(row)) {
        say(&format!("measuring {}", row.name()));
        match row {
            Row::WebhookDrain => webhook_drain::measure(&stage, &mut report).await,
            Row::NoopDrain => noop_drain::measure(&stage, &mut report).await,
            Row::Latency => latency::measure(&stage, &mut report).await,
            Row::PublishersTax => publishers_tax::measure(&stage, &mut report).await,
            Row::Fanout => fanout::measure(&stage, &mut report).await,
            Row::Matching => matching::measure(&stage, &mut report),
            Row::HeldTransaction => held_transaction::measure(&stage, &mut report).await,
            Row::Sinks => sinks::measure(&stage, &mut report).await,
        }
        .with_context(|| format!("measuring {}", row.name()))?;
    }
    stage.clear().await
}

/// One line of talk.
fn say(text: &str) {
    eprintln!("{text}");
}

/// Nothing is waited for without an end.
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

/// Looks every millisecond until so much was counted.
async fn reach(
    count: impl Fn() -> u64,
    wanted: u64,
    limit: Duration,
    doing: &'static str,
) -> anyhow::Result<()> {
    let mut looks = tokio::time::interval(Duration::from_millis(1));
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let reached = tokio::time::timeout(limit, async {
        while count() < wanted {
            looks.tick().await;
        }
    });
    let reached = reached.await;
    reached.map_err(|_| anyhow::anyhow!("{doing}: {} of {wanted} within {} s", count(), limit.as_secs()))
}

/// How many of something there were in a second.
fn per_second(count: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "counts here stay far below 2^52")]
    let count = count as f64;
    count / took.as_secs_f64()
}
