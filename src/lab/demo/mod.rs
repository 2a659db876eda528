//! `pgoutbox demo`: a shop that sells, receivers that fail now and then, and a relay between them, on a private PostgreSQL.
//! Everything is real, on loopback and in a temporary directory, and gone afterwards. The shop and the checks use plain
//! SQL, as an application would.
//!
//! `stage` sets it up and tears it down, `shop` sells, `ledger` knows what should arrive and what did, `live` and `script`
//! are the two ways to run it, `screen` draws.

mod ledger;
mod live;
mod screen;
mod script;
mod shop;
mod stage;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use stage::Stage;

/// How to run it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Play a short script, check that everything arrived as planned, and end; otherwise run until Ctrl-C.
    pub once: bool,
}

/// Runs the demo until it is done or interrupted, and cleans up. Talks on standard output.
///
/// # Errors
/// When PostgreSQL is missing or something does not start; with `once`, also when a delivery is not as planned.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    screen::say("starting a private PostgreSQL in a temporary directory");
    let mut stage = tokio::select! {
        stage = Stage::set() => stage?,
        () = signals.next() => anyhow::bail!("interrupted while starting"),
    };
    let played = tokio::select! {
        played = async { if options.once { script::play(&mut stage).await } else { live::play(&mut stage).await } } => played,
        () = signals.next() => if options.once { Err(anyhow::anyhow!("interrupted before the end of the script")) } else { Ok(()) },
    };
    screen::say("stopping: no new deliveries, those in flight may finish");
    let ledger = stage.ledger();
    let drained = tokio::select! {
        drained = stage.clear() => drained,
        () = signals.next() => Err(anyhow::anyhow!("interrupted again: stopped without waiting for deliveries in flight")),
    };
    played?;
    drained?;
    screen::say(&format!("{}\nPostgreSQL is stopped and its directory removed.", ledger.summary()));
    Ok(())
}

/// Ctrl-C and SIGTERM.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
        let terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
        Ok(Self { interrupt, terminate })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
    }
}
