//! The typed configuration. Defaults < `pgoutbox.toml` < `DATABASE_URL` < `PGOUTBOX__SECTION__KEY` < flags.
//! Unknown keys are errors. All mistakes are reported at once, each with its origin. The manual is
//! `default.toml`. Only this folder and `sink/secret.rs` read settings from the environment.

mod backplane;
mod environment;
mod jwt;
mod read;
mod sections;
mod several;
mod sinks;
mod sources;
#[cfg(test)]
mod tests;

use std::{fmt, path::PathBuf};

use read::Reader;
use secrecy::{ExposeSecret, SecretString};

use crate::{
    http, live, relay,
    sink::{Connection, Kind, Problem, address, egress::Egress, servers::Servers, settings::text},
};

pub use several::{Named, Several};
pub use sources::Sources;

/// The manual: each key with its meaning, limits and default.
pub const MANUAL: &str = include_str!("default.toml");

/// All settings of an operator.
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
    /// `[realtime]`
    pub realtime: live::Settings,
    /// `[telemetry]`
    pub telemetry: Telemetry,
    /// `[sinks.<kind>]`
    pub sinks: Vec<Connection>,
    /// Files that the settings refer to: with secrets, certificates, authorities.
    pub files: Vec<PathBuf>,
    /// Variables that are no settings, and those that may be meant.
    misnamed: Vec<(String, String)>,
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// Address of the outbox's database.
    pub url: SecretString,
    /// Address for LISTEN without a pooler; none means `url`.
    pub listen_url: Option<SecretString>,
    /// Connections for reports and reloads. Routing, claiming, settling, renewing and the listener have seven
    /// in addition.
    pub pool_size: u32,
    /// Most connections for SQL functions of subscriptions, opened on demand.
    pub function_pool_size: u32,
    /// Whether `url` connects to a transaction pooler such as PgBouncer.
    pub pooler: bool,
    /// Whether the relay starts although its login is a superuser.
    pub allow_superuser: bool,
}

/// `[secrets]`
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    /// Folder of `file:NAME`; none refuses such references.
    pub folder: Option<PathBuf>,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// Log filter, such as `info` or `pgoutbox=debug`.
    pub log: String,
    /// Format of log lines; none means text on a terminal, JSON otherwise.
    pub format: Option<LogFormat>,
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The mistakes in a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// At least one mistake, in the order of the manual.
    pub mistakes: Vec<Mistake>,
}

/// A mistake in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// `section.key`, or the file that could not be read.
    pub key: String,
    /// The value, at most 80 characters; `[redacted]` for a secret; none if it was not set.
    pub value: Option<String>,
    /// File, environment variable or flag that set the value.
    pub origin: Option<String>,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

/// Key of the mistake that no source, or none of these, was chosen.
const CHOICE: &str = "--source";

impl Error {
    /// Of several databases none was chosen, or one that is not there.
    fn of_choice(problem: String) -> Self {
        let key = CHOICE.to_owned();
        Self { mistakes: vec![Mistake { key, value: None, origin: None, problem }] }
    }

    /// Whether only the flag `--source` is wrong or missing, and the configuration is right.
    #[must_use]
    pub fn is_of_choice(&self) -> bool {
        matches!(&self.mistakes[..], [Mistake { key, .. }] if key == CHOICE)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_of_choice() {
            return f.write_str(&self.mistakes[0].problem);
        }
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
    /// What it means that there is only a transaction pooler.
    pub(super) const ONLY_POLLS: &str = "database.pooler without database.listen_url: a pooler does not \
                                         support LISTEN, so the relay only polls";

    /// The defaults with this address, which has no default.
    #[must_use]
    pub fn new(database_url: SecretString) -> Self {
        Self {
            database: Database {
                url: database_url,
                listen_url: None,
                pool_size: 4,
                function_pool_size: crate::sinks::FUNCTION_CONNECTIONS,
                pooler: false,
                allow_superuser: false,
            },
            relay: relay::Settings::default(),
            egress: Egress::default(),
            secrets: Secrets::default(),
            http: http::Settings::default(),
            realtime: live::Settings::default(),
            telemetry: Telemetry::default(),
            sinks: Vec::new(),
            files: Vec::new(),
            misnamed: Vec::new(),
        }
    }

    /// Reads and checks all settings. `sinks` are the kinds that `[sinks]` may contain. Of several
    /// databases those of `--source`.
    ///
    /// # Errors
    /// All mistakes at once, or that there are several databases and none was chosen.
    pub fn load(sources: &Sources, sinks: &[Kind]) -> Result<Self, Error> {
        if let Some(several) = Several::load(sources, sinks)? {
            return several.choose(sources.source.as_deref());
        }
        if let Some(name) = &sources.source {
            return Err(Error::of_choice(format!(
                "there is no source {name:?}: the configuration has no [[source]]"
            )));
        }
        let (config, _, mistakes) = Self::read(sources, sinks);
        if mistakes.is_empty() { Ok(config) } else { Err(Error { mistakes }) }
    }

    /// The servers of the database.
    ///
    /// # Errors
    /// When the address is invalid or has unknown parameters. [`Config::load`] has checked that.
    pub fn servers(&self) -> Result<Servers, Error> {
        address("database.url", &self.database.url)
    }

    /// Servers for LISTEN; none if there is only a transaction pooler, which does not support LISTEN.
    ///
    /// # Errors
    /// As [`Config::servers`].
    pub fn listen_servers(&self) -> Result<Option<Servers>, Error> {
        match &self.database.listen_url {
            Some(url) => address("database.listen_url", url).map(Some),
            None if self.database.pooler => Ok(None),
            None => self.servers().map(Some),
        }
    }

    /// Warnings about settings that are valid but may be unintended.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let found = [
            (self.database.pooler && self.database.listen_url.is_none(), Self::ONLY_POLLS),
            (
                self.relay.poll.is_some_and(|poll| poll > self.relay.lease),
                "relay.poll is longer than relay.lease: deliveries of a killed relay may wait for it, up to 40 s",
            ),
            (
                self.relay.poll.is_none(),
                "relay.poll is off: while the LISTEN connection is lost, no new event is found",
            ),
            (
                self.egress.proxy.is_some(),
                "egress.proxy is set: the proxy decides which addresses can be reached",
            ),
            (
                jwt::is_short(self.http.jwt.as_ref()),
                "http.jwt.secret has fewer than 32 bytes: whoever has a token can find it out by trying",
            ),
        ];
        let misnamed =
            self.misnamed.iter().map(|(name, meant)| format!("{name} is no setting; write {meant}"));
        let found = found.into_iter().filter(|(applies, _)| *applies);
        misnamed.chain(found.map(|(_, warning)| warning.to_owned())).collect()
    }

    /// The configuration, all keys and the mistakes, in the order of the manual.
    fn read(sources: &Sources, kinds: &[Kind]) -> (Self, Vec<String>, Vec<Mistake>) {
        let mut reader = Reader::new(sources);
        let config = Self::read_from(&mut reader, sources, kinds, true);
        let (keys, mistakes) = reader.finish();
        (config, keys, mistakes)
    }

    /// The configuration. `has_database`: whether it is that of a database, and not of all.
    fn read_from(reader: &mut Reader, sources: &Sources, kinds: &[Kind], has_database: bool) -> Self {
        let mut config = Self::new(SecretString::default());
        if has_database {
            config.database.read(reader, sources);
        }
        sections::relay(&mut config.relay, reader);
        if config.database.pooler && config.database.listen_url.is_none() && config.relay.poll.is_none() {
            reader.refuse(
                "relay.poll",
                "off is not possible with database.pooler and without database.listen_url; set one of them",
            );
        }
        sections::retention(&mut config.relay.retention, reader);
        sections::egress(&mut config.egress, reader);
        config.secrets.folder = reader.read("secrets.folder", text).map(PathBuf::from);
        sections::http(&mut config.http, reader, sources);
        config.http.jwt = jwt::read(reader, sources, &config.egress);
        sections::require_proof(&config.http, reader);
        sections::realtime(&mut config.realtime, reader);
        config.realtime.backplane = backplane::read(reader, sources);
        config.telemetry.read(reader);
        config.sinks = sinks::read(reader, sources, kinds);
        config.files = reader.files();
        config.misnamed = reader.misnamed(sources);
        let addresses = [Some(&config.database.url), config.database.listen_url.as_ref()];
        config
            .files
            .extend(addresses.into_iter().flatten().flat_map(|url| address::files(url.expose_secret())));
        config
    }
}

fn address(key: &str, url: &SecretString) -> Result<Servers, Error> {
    url.expose_secret().parse().map_err(|problem: Problem| Error {
        mistakes: vec![Mistake {
            key: key.to_owned(),
            value: Some("[redacted]".to_owned()),
            origin: None,
            problem: problem.into(),
        }],
    })
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { log: "info".to_owned(), format: None }
    }
}
