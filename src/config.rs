//! The one typed configuration. Defaults < `pgoutbox.toml` < `DATABASE_URL` < `PGOUTBOX__SECTION__KEY` < flags.
//! Unknown keys are errors; all mistakes are reported at once, each with its origin. What leaves this file is parsed.
//! Its manual is `config.default.toml`. Nothing else reads the environment, except secrets.

mod database;
mod read;
mod sections;
mod sinks;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use read::{Reader, text};
use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::PgConnectOptions;

pub(crate) use database::parse as database_url;
pub use sinks::{Connection, Settings};
pub use sources::Sources;

/// The manual: every key with its meaning, limits and default.
pub const MANUAL: &str = include_str!("config.default.toml");

/// Everything an operator can set.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[database]`
    pub database: Database,
    /// `[relay]`
    pub relay: RelayConfig,
    /// `[egress]`
    pub egress: Egress,
    /// `[secrets]`
    pub secrets: Secrets,
    /// `[http]`
    pub http: Http,
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

/// `[relay]`
#[derive(Debug, Clone)]
pub struct RelayConfig {
    /// Name in logs, `application_name` and attempt rows; default: host name and process id.
    pub name: String,
    /// Production, staging, …; shown, not yet compared with the database.
    pub environment: String,
    /// Deliveries in flight at most; also the most copies a killed relay can cause.
    pub permits: u32,
    /// Of these for one subscription at most, where it does not say itself.
    pub permits_per_subscription: u32,
    /// How long a delivery is reserved; renewed while in flight.
    pub lease: Duration,
    /// How long a stop waits for deliveries in flight.
    pub drain: Duration,
    /// Fallback poll; `None` is `"off"`.
    pub poll: Option<Duration>,
    /// Which attempts are recorded.
    pub attempt_log: AttemptLog,
}

/// Which attempts are recorded in `outbox.attempts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttemptLog {
    /// Every attempt.
    All,
    /// Those that did not succeed.
    Failures,
    /// None.
    Off,
}

/// `[egress]`
#[derive(Debug, Clone, Default)]
pub struct Egress {
    /// Forbidden ranges that are allowed after all.
    pub allow: Vec<IpNet>,
    /// Allow `http:` beside `https:`.
    pub allow_http: bool,
    /// An explicit proxy; the address policy is then the proxy's.
    pub proxy: Option<url::Url>,
    /// A file of further certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// Ports never connected to; default: [`crate::egress::DENIED_PORTS`].
    pub deny_ports: Option<Vec<u16>>,
}

/// `[secrets]`
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// The one folder in which `file:NAME` is looked up; none: file references are refused.
    pub folder: Option<PathBuf>,
}

/// `[http]`
#[derive(Debug, Clone)]
pub struct Http {
    /// Where probes and metrics are served; `None` is `"off"`.
    pub listen: Option<SocketAddr>,
    /// Required for every request except the probes where `listen` is not loopback.
    pub token: Option<SecretString>,
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
        write!(f, "the configuration has {} mistake{}", self.mistakes.len(), if self.mistakes.len() == 1 { "" } else { "s" })?;
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
            database: Database { url: database_url, listen_url: None, pool_size: 4, pooler: false, allow_superuser: false },
            relay: RelayConfig::default(),
            egress: Egress::default(),
            secrets: Secrets::default(),
            http: Http::default(),
            telemetry: Telemetry::default(),
            sinks: Vec::new(),
        }
    }

    /// Reads and checks everything.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(sources: &Sources) -> Result<Self, Error> {
        let (config, _, mistakes) = Self::read(sources);
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
            (self.relay.poll.is_none(), "relay.poll is off: while the doorbell's connection is broken, no new event is found"),
            (self.egress.proxy.is_some(), "egress.proxy is set: which addresses may be reached is up to the proxy"),
        ];
        found.into_iter().filter_map(|(applies, sentence)| applies.then_some(sentence)).collect()
    }

    /// In the order of the manual: the configuration, every key there is, and the mistakes.
    fn read(sources: &Sources) -> (Self, Vec<String>, Vec<Mistake>) {
        let mut reader = Reader::new(sources);
        let mut config = Self::new(SecretString::default());
        config.database.read(&mut reader, sources);
        config.relay.read(&mut reader);
        if config.database.pooler && config.database.listen_url.is_none() && config.relay.poll.is_none() {
            reader
                .refuse("relay.poll", "with database.pooler and without database.listen_url nothing would ever be found; set one of them");
        }
        config.egress.read(&mut reader);
        config.secrets.folder = reader.read("secrets.folder", text).map(PathBuf::from);
        config.http.read(&mut reader, sources);
        config.telemetry.read(&mut reader);
        config.sinks = sinks::read(&mut reader, sources);
        let (keys, mistakes) = reader.finish();
        (config, keys, mistakes)
    }
}

fn address(key: &str, url: &SecretString) -> Result<PgConnectOptions, Error> {
    database::parse(url.expose_secret()).map_err(|problem| Error {
        mistakes: vec![Mistake { key: key.to_owned(), value: Some("[redacted]".to_owned()), origin: None, problem }],
    })
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            name: format!("pgoutbox-{}", std::process::id()),
            environment: "default".to_owned(),
            permits: 256,
            permits_per_subscription: 64,
            lease: Duration::from_secs(10),
            drain: Duration::from_secs(20),
            poll: Some(Duration::from_secs(1)),
            attempt_log: AttemptLog::Failures,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 7411))), token: None }
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: None }
    }
}
