//! `pgoutbox demo`: a shop that publishes orders, receivers that fail now and then, and a relay between them,
//! on a private PostgreSQL. Everything runs on loopback and in a temporary directory, which is removed. The
//! shop and the checks use plain SQL, as an application would.
//!
//! `stage` starts and stops everything, `shop` publishes, `ledger` compares what should arrive with what did,
//! `live` and `script` are the two ways to run it, `screen` draws, `page` shows the orders in a browser.

mod ledger;
mod live;
mod page;
mod screen;
mod script;
mod shop;
mod stage;
mod status;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use stage::Stage;

/// Options of the demo.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether to play a short script, check the result and end, instead of running until Ctrl-C.
    pub once: bool,
}

/// Runs the demo until it ends or is interrupted, and cleans up. Prints to standard output.
///
/// # Errors
/// When PostgreSQL is missing or a part does not start; with `once`, also when a delivery is not as planned.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    screen::say("starting a private PostgreSQL in a temporary directory");
    let mut stage = tokio::select! {
        stage = Stage::start() => stage?,
        () = signals.next() => anyhow::bail!("interrupted while starting"),
    };
    let played = tokio::select! {
        played = play(options, &mut stage) => played,
        () = signals.next() => if options.once {
            Err(anyhow::anyhow!("interrupted before the end of the script"))
        } else {
            Ok(())
        },
    };
    screen::say("stopping; waiting for deliveries in flight");
    let (ledger, page) = (stage.ledger(), stage.page());
    let drained = tokio::select! {
        drained = stage.stop() => drained,
        () = signals.next() => Err(anyhow::anyhow!("interrupted again; stopped without draining")),
    };
    played?;
    drained?;
    screen::say(&format!(
        "{}\n{page} showed the orders live.\nPostgreSQL is stopped and its directory removed.",
        ledger.summary()
    ));
    Ok(())
}

async fn play(options: Options, stage: &mut Stage) -> anyhow::Result<()> {
    if options.once { script::play(stage).await } else { live::play(stage).await }
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
