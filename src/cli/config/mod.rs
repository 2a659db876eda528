//! The one typed configuration. Defaults < `pgoutbox.toml` < `DATABASE_URL` < `PGOUTBOX__SECTION__KEY` < flags.
//! Unknown keys are errors; all mistakes are reported at once, each with its origin. What leaves this file is parsed.
//! Its manual is `default.toml`. Nothing else reads the environment, except secrets.

mod read;
mod sections;
mod sinks;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf};

use read::Reader;
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

use crate::{
    http, relay,
    sink::{Connection, Kind, address, egress::Egress, settings::text},
};

pub use sources::Sources;

/// The manual: every key with its meaning, limits and default.
pub const MANUAL: &str = include_str!("default.toml");

/// Everything an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[database]`
    pub database: Database,
    /// `[relay]`
    pub relay: relay::Settings,
    /// `[egress]`
    pub egress: Egress,
    /// `[secrets]`
    pub secrets: Secrets,
    /// `[http]`
    pub http: http::Settings,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[sinks.<kind>]`
    pub sinks: Vec<Connection>,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// Where the outbox lives.
    pub url: SecretString,
    /// A direct connection for LISTEN beside a pooled `url`; default: `url`.
    pub listen_url: Option<SecretString>,
    /// Connections for reports and reloads; routing, settling, renewing and the listener keep one each beside them.
    pub pool_size: u32,
    /// `url` goes through a transaction pooler such as PgBouncer.
    pub pooler: bool,
    /// Start although the login is a superuser.
    pub allow_superuser: bool,
}

/// `[secrets]`
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// The one folder in which `file:NAME` is looked up; none: file references are refused.
    pub folder: Option<PathBuf>,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// A filter such as `info` or `pgoutbox=debug`.
    pub log: String,
    /// Text or JSON lines; default: text on a terminal, JSON otherwise.
    pub format: Option<LogFormat>,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// One or more, in the order of the manual.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// `section.key`, or the file that could not be read.
    pub key: String,
    /// What was written, at most 80 characters; `[redacted]` for a secret, `None` where nothing was.
    pub value: Option<String>,
    /// The file, environment variable or flag it was written in.
    pub origin: Option<String>,
    /// What to write instead.
    pub problem: String,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the configuration has {} mistake{}",
            self.mistakes.len(),
            if self.mistakes.len() == 1 { "" } else { "s" }
        )?;
        self.mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, " ({origin})")?;
        }
        write!(f, ": {}", self.problem)
    }
}

impl Config {
    /// The defaults, with the one thing that has none.
    #[must_use]
    pub fn new(database_url: SecretString) -> Self {
        Self {
            database: Database {
                url: database_url,
                listen_url: None,
                pool_size: 4,
                pooler: false,
                allow_superuser: false,
            },
            relay: relay::Settings::default(),
            egress: Egress::default(),
            secrets: Secrets::default(),
            http: http::Settings::default(),
            telemetry: Telemetry::default(),
            sinks: Vec::new(),
        }
    }

    /// Reads and checks everything. `sinks`: the kinds that may stand below `[sinks]`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(sources: &Sources, sinks: &[Kind]) -> Result<Self, Error> {
        let (config, _, mistakes) = Self::read(sources, sinks);
        if mistakes.is_empty() { Ok(config) } else { Err(Error { mistakes }) }
    }

    /// How to reach the database.
    ///
    /// # Errors
    /// When the address cannot be parsed or has parameters that would have no effect. [`Config::load`] has checked that.
    pub fn connect_options(&self) -> Result<PgConnectOptions, Error> {
        address("database.url", &self.database.url)
    }

    /// How to reach the database for LISTEN; `None` when there is only a transaction pooler, through which nothing is heard.
    ///
    /// # Errors
    /// As [`Config::connect_options`].
    pub fn listen_options(&self) -> Result<Option<PgConnectOptions>, Error> {
        match &self.database.listen_url {
            Some(url) => address("database.listen_url", url).map(Some),
            None if self.database.pooler => Ok(None),
            None => self.connect_options().map(Some),
        }
    }

    /// What is allowed but may surprise, a sentence each.
    #[must_use]
    pub fn warnings(&self) -> Vec<&'static str> {
        let found = [
            (
                self.database.pooler && self.database.listen_url.is_none(),
                "database.pooler without database.listen_url: no doorbell is heard through a pooler, work is found by polling only",
            ),
            (
                self.relay.poll.is_some_and(|poll| poll > self.relay.lease),
                "relay.poll is longer than relay.lease: what a killed relay held may wait for the poll",
            ),
            (
                self.relay.poll.is_none(),
                "relay.poll is off: while the doorbell's connection is broken, no new event is found",
            ),
            (
                self.egress.proxy.is_some(),
                "egress.proxy is set: which addresses may be reached is up to the proxy",
            ),
        ];
        found.into_iter().filter_map(|(applies, sentence)| applies.then_some(sentence)).collect()
    }

    /// In the order of the manual: the configuration, every key there is, and the mistakes.
    fn read(sources: &Sources, kinds: &[Kind]) -> (Self, Vec<String>, Vec<Mistake>) {
        let mut reader = Reader::new(sources);
        let mut config = Self::new(SecretString::default());
        config.database.read(&mut reader, sources);
        sections::relay(&mut config.relay, &mut reader);
        if config.database.pooler && config.database.listen_url.is_none() && config.relay.poll.is_none() {
            reader
                .refuse("relay.poll", "with database.pooler and without database.listen_url nothing would ever be found; set one of them");
        }
        sections::egress(&mut config.egress, &mut reader);
        config.secrets.folder = reader.read("secrets.folder", text).map(PathBuf::from);
        sections::http(&mut config.http, &mut reader, sources);
        config.telemetry.read(&mut reader);
        config.sinks = sinks::read(&mut reader, sources, kinds);
        let (keys, mistakes) = reader.finish();
        (config, keys, mistakes)
    }
}

fn address(key: &str, url: &SecretString) -> Result<PgConnectOptions, Error> {
    address::parse(url.expose_secret()).map_err(|problem| Error {
        mistakes: vec![Mistake {
            key: key.to_owned(),
            value: Some("[redacted]".to_owned()),
            origin: None,
            problem,
        }],
    })
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: None }
    }
}
