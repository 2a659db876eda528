//! pgoutbox beside tuned job queues: one backlog, one PostgreSQL, one receiver, one run. `make bench-peers`;
//! see README.md.
//!
//! Without a subcommand it measures. With one it is a measured process: the bare client, or the worker of the
//! Rust port of graphile-worker.

mod event;
mod figures;
mod floor;
mod machine;
mod measure;
mod postgres;
mod process;
mod receiver;
mod report;
mod rust_worker;
mod systems;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Measures pgoutbox beside tuned job queues.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    options: figures::Options,
}

/// Subcommands with which this program starts itself.
#[derive(Debug, Subcommand)]
enum Part {
    /// Posts bodies without a database.
    #[command(hide = true)]
    Floor { at_once: usize },
    /// Adds a backlog of jobs for the Rust port of graphile-worker.
    #[command(hide = true)]
    RustFill,
    /// Works on the backlog until SIGTERM.
    #[command(hide = true)]
    RustRun,
}

/// The folder of the project.
fn project() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let runtime = match arguments.part {
        // Children are signalled when the thread that started them ends: the main thread lives longest.
        None => tokio::runtime::Builder::new_current_thread().enable_all().build()?,
        Some(_) => tokio::runtime::Runtime::new()?,
    };
    runtime.block_on(async {
        match arguments.part {
            None => measure(arguments.options).await,
            Some(Part::Floor { at_once }) => floor::run(at_once).await,
            Some(Part::RustFill) => rust_worker::fill().await,
            Some(Part::RustRun) => rust_worker::run().await,
        }
    })
}

async fn measure(options: figures::Options) -> anyhow::Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        // A signal drops this future with all it owns: workers, receiver, PostgreSQL and its directory.
        measured = measure::run(&options) => measured,
        _ = interrupt.recv() => anyhow::bail!("interrupted; everything is stopped and removed"),
        _ = terminate.recv() => anyhow::bail!("terminated; everything is stopped and removed"),
    }
}
