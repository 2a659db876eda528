//! Writes log lines to standard error, as text or as JSON. A line that cannot be written is lost and stops
//! nothing: the reader of the log may be gone, its disk may be full.

use std::io::{self, IsTerminal, Write, stderr};

use tracing_subscriber::{EnvFilter, fmt};

use super::config::{LogFormat, Telemetry};

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `telemetry.log` is not a filter.
    #[error("reading telemetry.log")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Another logger is installed in this process.
    #[error("starting the logger: {0}")]
    Taken(Box<dyn std::error::Error + Send + Sync>),
}

/// Installs the logger, once per process. Text is coloured on a terminal unless `NO_COLOR` is set.
///
/// # Errors
/// When the filter is invalid, or another logger is installed.
pub fn init(settings: &Telemetry) -> Result<(), Error> {
    let filter = filter(&settings.log)?;
    let terminal = stderr().is_terminal();
    // The library would print its own errors, and panic when that fails.
    let lines = fmt().with_env_filter(filter).with_writer(|| Lossy(stderr())).log_internal_errors(false);
    match settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json }) {
        // On a terminal the default applies, which honours NO_COLOR.
        LogFormat::Text if terminal => lines.try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(Error::Taken)
}

/// Drops what cannot be written.
#[derive(Debug)]
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = self.0.write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// The log filter. Client libraries log failures that sinks report too. The AMQP library logs the payload of
/// returned messages, so it is always off.
fn filter(directives: &str) -> Result<EnvFilter, Error> {
    let filter = EnvFilter::try_new(format!("async_nats=off,{directives}"))?;
    Ok(filter.add_directive("lapin=off".parse()?).add_directive("lapin::returned_messages=off".parse()?))
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_amqp_library_logs_nothing_whatever_the_filter_says() {
        for directives in ["trace", "info", "info,lapin=trace", "lapin::returned_messages=trace,info"] {
            let written = Written::default();
            let writer = written.clone();
            let subscriber = fmt()
                .with_env_filter(filter(directives).unwrap())
                .with_writer(move || writer.clone())
                .finish();
            tracing::subscriber::with_default(subscriber, || {
                tracing::warn!(target: "lapin::returned_messages", payload = "secret", "message returned");
                tracing::warn!(target: "pgoutbox", "logged");
            });
            let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert!(written.contains("logged") && !written.contains("secret"), "{directives}: {written}");
        }
    }
}
