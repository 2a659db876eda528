//! The `pgoutbox` binary: arguments in, exit code out. Everything between is in `cli/` and the library.

mod cli;

use std::process::ExitCode;

use pgoutbox::{config, operate};

/// How the program ends. The table of exit codes; `pgoutbox --help` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 69,
    Unfinished = 75,
    Misconfigured = 78,
}

impl Exit {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Done, "done"),
        (Self::Failed, "failed, or a check found something"),
        (Self::Usage, "wrong usage"),
        (Self::Unreachable, "the database cannot be reached"),
        (Self::Unfinished, "the drain ran out of time or was cut short; what was in flight will be tried again"),
        (Self::Misconfigured, "the configuration is wrong"),
    ];

    /// What an error means to whoever started the program.
    fn of(error: &anyhow::Error) -> Self {
        for cause in error.chain() {
            if cause.is::<cli::Misuse>() {
                return Self::Usage;
            }
            if cause.is::<config::Error>() {
                return Self::Misconfigured;
            }
            let unreachable = matches!(cause.downcast_ref(), Some(operate::Error::Unreachable { .. }))
                || cause.downcast_ref().is_some_and(operate::is_unreachable);
            if unreachable {
                return Self::Unreachable;
            }
            // A reader that had enough, such as `head`.
            if cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
                return Self::Done;
            }
        }
        Self::Failed
    }
}

fn main() -> ExitCode {
    let arguments = match cli::parse(std::env::args_os()) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("pgoutbox: starting the runtime: {error}");
            return Exit::Failed.into();
        }
    };
    let ended = runtime.block_on(cli::execute(arguments));
    // After a second signal there may be attempts in flight: they are not waited for.
    runtime.shutdown_background();
    ended
        .unwrap_or_else(|error| {
            let exit = Exit::of(&error);
            if exit != Exit::Done {
                eprintln!("pgoutbox: {}", chain(&error));
            }
            exit
        })
        .into()
}

/// An error and its causes on one line. A driver that repeats its cause in its own text is not repeated here.
fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    // Only the list of mistakes in a configuration has lines of its own.
    if error.is::<config::Error>() { text } else { text.lines().map(str::trim).collect::<Vec<_>>().join("; ") }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
