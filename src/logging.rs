//! Where log lines go: standard error, as text for people or as JSON for machines. What is logged is said in `telemetry.rs`.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::{EnvFilter, fmt};

use crate::config::{LogFormat, Telemetry};

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `telemetry.log` is not a filter.
    #[error("reading telemetry.log")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Something else in this process has taken the place.
    #[error("starting to log: {0}")]
    Taken(Box<dyn std::error::Error + Send + Sync>),
}

/// Starts to log, once per process. Text is coloured on a terminal unless `NO_COLOR` is set.
///
/// # Errors
/// When the filter cannot be read, or something else logs already.
pub fn init(settings: &Telemetry) -> Result<(), Error> {
    // That library logs the failures which its sink reports.
    let filter = EnvFilter::try_new(format!("async_nats=off,{}", settings.log))?;
    let terminal = stderr().is_terminal();
    let lines = fmt().with_env_filter(filter).with_writer(stderr);
    match settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        // On a terminal the default stands, which honours NO_COLOR.
        LogFormat::Text if terminal => lines.try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(Error::Taken)
}
