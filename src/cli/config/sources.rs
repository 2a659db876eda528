//! Sources of settings: a file, the environment, flags. The environment is read once, here.

use std::{ffi::OsString, fmt, fs, io::Read, path::PathBuf};

use secrecy::SecretString;

use super::Mistake;
use crate::sink::secret::trimmed;

/// Default file, read if it exists.
const FILE: &str = "pgoutbox.toml";
/// Largest secret read from a file, in bytes.
const LONGEST_SECRET: u64 = 65_536;

/// Sources of settings, besides the defaults.
#[derive(Clone, Default)]
pub struct Sources {
    /// File that must exist; none means `pgoutbox.toml` in the working directory, if it exists.
    pub file: Option<PathBuf>,
    /// Environment variables: name, value.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags of the command line: key, flag, value.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// Name of the chosen `[[source]]`, if one was chosen.
    pub source: Option<String>,
}

impl fmt::Debug for Sources {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Sources {
    /// The environment of this process, without flags.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>) -> Self {
        Self { file, environment: std::env::vars_os().collect(), ..Self::default() }
    }

    /// An environment variable, if it is set and UTF-8.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.environment
            .iter()
            .find(|(key, _)| key == name)
            .and_then(|(_, value)| value.to_str().map(ToOwned::to_owned))
    }

    /// Whether there are settings beyond the database's: a file, or variables of other sections.
    #[must_use]
    pub fn are_of_a_relay(&self) -> bool {
        let is_of_a_relay = |name: &str| {
            name.strip_prefix("PGOUTBOX__").is_some_and(|section| !section.starts_with("DATABASE__"))
        };
        self.existing_file().is_ok_and(|file| file.is_some())
            || self.environment.iter().any(|(name, _)| name.to_str().is_some_and(is_of_a_relay))
    }

    /// Whether the environment variables of PostgreSQL clients name a database.
    pub(super) fn has_postgres_variables(&self) -> bool {
        ["PGHOST", "PGHOSTADDR", "PGDATABASE"]
            .iter()
            .any(|name| self.variable(name).is_some_and(|value| !value.is_empty()))
    }

    /// Resolves `env:NAME` and `file:/path`; any other text is the secret itself. Unlike in a
    /// subscription, every name and path is allowed: the author of the configuration owns the process.
    ///
    /// # Errors
    /// A message without the secret: the variable or file does not exist, cannot be read, or is empty. A
    /// file is read up to 64 KiB.
    pub fn resolve(&self, text: &str) -> Result<SecretString, String> {
        let secret = if let Some(name) = text.strip_prefix("env:") {
            self.variable(name).ok_or_else(|| format!("the environment variable {name} is not set"))?
        } else if let Some(path) = text.strip_prefix("file:") {
            let mut secret = String::new();
            fs::File::open(path)
                .and_then(|file| file.take(LONGEST_SECRET).read_to_string(&mut secret))
                .map_err(|error| format!("reading {path}: {error}"))?;
            secret
        } else {
            return if text.is_empty() { Err("is empty".to_owned()) } else { Ok(text.into()) };
        };
        trimmed(&secret).ok_or_else(|| "the reference is to an empty text".to_owned())
    }

    pub(super) fn existing_file(&self) -> Result<Option<PathBuf>, Mistake> {
        let path = self.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
        match fs::File::open(&path).and_then(|file| file.metadata()) {
            Ok(metadata) if metadata.is_file() => Ok(Some(path)),
            Ok(_) => Err(Mistake::of_file(&path, "is not a file")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.file.is_none() => Ok(None),
            Err(error) => Err(Mistake::of_file(&path, &format!("cannot be read: {error}"))),
        }
    }
}

/// Default name of a relay.
pub(super) fn host_name_and_process_id() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host: String =
        host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).take(50).collect();
    format!("{}-{}", if host.is_empty() { "relay" } else { &host }, std::process::id())
}
