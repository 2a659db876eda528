//! Writes log lines to standard error, as text or as JSON. A line that cannot be written is lost and stops
//! nothing: the reader of the log may be gone, its disk may be full.

use std::io::{self, IsTerminal, Write, stderr};

use tracing_subscriber::{EnvFilter, fmt};

use super::config::{LogFormat, Telemetry};
use crate::event::harmless;

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
    let format = settings.format.unwrap_or(if terminal { LogFormat::Text } else { LogFormat::Json });
    let writer = move || Lossy { to: stderr(), format };
    let lines = fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match format {
        // On a terminal the default applies, which honours NO_COLOR.
        LogFormat::Text if terminal => lines.try_init(),
        LogFormat::Text => lines.with_ansi(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).try_init(),
    }
    .map_err(Error::Taken)
}

/// Writes lines in which nothing that strangers wrote controls a terminal, and drops what cannot be written.
#[derive(Debug)]
struct Lossy<W> {
    to: W,
    format: LogFormat,
}

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let text = match self.format {
            LogFormat::Json => harmless::escaped_json(&text),
            // The library has written out the colours of others.
            LogFormat::Text => harmless::escaped_line(&text),
        };
        let _ = self.to.write_all(text.as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.to.flush();
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
    fn nothing_that_strangers_wrote_controls_the_terminal_of_a_log() {
        let foreign = "a\u{1b}[31m\u{9b}2J\u{202e}\u{2028}\n\u{200b}z";
        for format in [LogFormat::Text, LogFormat::Json] {
            let written = Written::default();
            let to = written.clone();
            let lines = fmt().with_ansi(false).with_writer(move || Lossy { to: to.clone(), format });
            let logging = || tracing::warn!(topic = foreign, other = ?foreign, "{foreign}");
            match format {
                LogFormat::Text => tracing::subscriber::with_default(lines.finish(), logging),
                LogFormat::Json => tracing::subscriber::with_default(lines.json().finish(), logging),
            }
            let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            let line = written.strip_suffix('\n').unwrap();
            let harmful: Vec<char> = line.chars().filter(|c| !harmless::is_harmless(*c)).collect();
            assert!(harmful.iter().all(|c| *c == '\n'), "{format:?}: {harmful:?} in {written:?}");
            if matches!(format, LogFormat::Json) {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!(line["fields"]["topic"], foreign, "it means the same");
            }
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
