//! Certificate files of a connection to a broker. Opens no connection.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::Settings;

/// Certificate files of one connection, all PEM. Without `ca_file` the system's authorities are trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificate authorities that replace the system's.
    pub ca_file: Option<PathBuf>,
    /// Certificate of the client; requires `key_file`.
    pub cert_file: Option<PathBuf>,
    /// Private key of the client's certificate.
    pub key_file: Option<PathBuf>,
}

/// A client's certificate and private key, PEM.
pub(crate) struct Identity {
    pub(crate) cert: Vec<u8>,
    pub(crate) key: Vec<u8>,
}

impl TlsFiles {
    pub(crate) fn read(settings: &mut Settings<'_>) -> Self {
        Self {
            ca_file: settings.path("ca_file"),
            cert_file: settings.path("cert_file"),
            key_file: settings.path("key_file"),
        }
    }

    /// Whether any file is set, which enables TLS.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.ca_file.is_some() || self.cert_file.is_some() || self.key_file.is_some()
    }

    /// A key that is set without the other one, with a message.
    pub(crate) fn problem(&self) -> Option<(&'static str, String)> {
        let key = if self.cert_file.is_some() { "cert_file" } else { "key_file" };
        let incomplete = self.cert_file.is_some() != self.key_file.is_some();
        incomplete.then(|| (key, "must be set together with the other of cert_file and key_file".to_owned()))
    }

    /// Reads the authorities at each call: the file may have been replaced.
    pub(crate) fn authorities(&self) -> Result<Option<Vec<u8>>, String> {
        self.ca_file.as_deref().map(|path| read("ca_file", path)).transpose()
    }

    /// Reads the client's certificate and key.
    pub(crate) fn identity(&self) -> Result<Option<Identity>, String> {
        match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => {
                Ok(Some(Identity { cert: read("cert_file", cert)?, key: read("key_file", key)? }))
            }
            _ => Ok(None),
        }
    }

    /// Checks that each file exists, without reading it.
    pub(crate) fn exist(&self) -> Result<(), String> {
        let files =
            [("ca_file", &self.ca_file), ("cert_file", &self.cert_file), ("key_file", &self.key_file)];
        for (key, path) in files.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?))) {
            fs::metadata(path).map_err(|error| format!("{key} {}: {error}", path.display()))?;
        }
        Ok(())
    }
}

fn read(key: &str, path: &Path) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("{key} {}: {error}", path.display()))
}

/// Installs the crypto provider that client libraries use. Does nothing if the embedding program has
/// installed one.
#[cfg(any(feature = "redis", feature = "nats", feature = "amqp"))]
pub(crate) fn use_ring() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
