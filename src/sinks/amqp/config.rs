//! Settings of `[sinks.amqp]`. Opens no connection.

use std::time::Duration;

use lapin::{
    tcp::{RustlsConnector, RustlsConnectorConfig},
    uri::AMQPUri,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::sink::{
    Settings,
    tls::{Identity, TlsFiles},
};

/// Default of `timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Default heartbeat, in seconds: after this time a silent server is detected.
const HEARTBEAT: u16 = 20;

/// Connection to an AMQP server: `[sinks.amqp]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `amqp://HOST:PORT/VHOST` or `amqps://…`. It may contain user and password.
    pub url: SecretString,
    /// User; overrides the one in the address.
    pub username: Option<String>,
    /// Password; overrides the one in the address.
    pub password: Option<SecretString>,
    /// Certificates for amqps.
    pub tls_files: TlsFiles,
    /// Timeout of confirmations, 1 s to 45 s.
    pub timeout: Duration,
}

impl Config {
    /// The defaults with this address.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self { url, username: None, password: None, tls_files: TlsFiles::default(), timeout: TIMEOUT }
    }
}

impl Config {
    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let url = settings.secret("url");
        let config = Self {
            username: settings.text("username"),
            password: settings.secret("password"),
            tls_files: TlsFiles::read(settings),
            timeout: settings
                .duration("timeout", Duration::from_secs(1)..=Duration::from_secs(45))
                .unwrap_or(TIMEOUT),
            url: settings.require("url", url)?,
        };
        settings.refuse_all(config.problems());
        Some(config)
    }

    /// Invalid keys, each with a message.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let url = match address(&self.url) {
            None => Some("must be amqp://HOST:PORT/VHOST or amqps://HOST:PORT/VHOST"),
            Some(address) if address.scheme() == "amqp" && self.tls_files.is_set() => {
                Some("must begin with amqps:// if certificates are set")
            }
            Some(_) => None,
        };
        url.map(|problem| ("url", problem.to_owned())).into_iter().chain(self.tls_files.problem()).collect()
    }

    /// Checks the configuration without connecting.
    pub(super) fn usable(&self) -> Result<(), String> {
        match self.problems().into_iter().next() {
            Some((key, problem)) => Err(format!("{key}: {problem}")),
            None if self.tls_files.is_set() => self.tls().map(drop),
            None => Ok(()),
        }
    }

    /// The address with user and password.
    pub(super) fn uri(&self) -> Result<AMQPUri, String> {
        let unusable = || "url: not an address of an AMQP server".to_owned();
        let address = address(&self.url).ok_or_else(unusable)?;
        let mut uri: AMQPUri = self.url.expose_secret().parse().map_err(|_| unusable())?;
        uri.authority.host = address.host_str().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
        if uri.vhost.is_empty() {
            // "amqp://host/" would be the virtual host "", which is never intended.
            uri.vhost = "/".to_owned();
        }
        if let Some(username) = &self.username {
            uri.authority.userinfo.username.clone_from(username);
        }
        if let Some(password) = &self.password {
            password.expose_secret().clone_into(&mut uri.authority.userinfo.password);
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        Ok(uri)
    }

    /// Whom to trust, and the client's certificate. Read at each call: the files may have been replaced.
    pub(super) fn tls(&self) -> Result<RustlsConnector, String> {
        let certificates = |key: &str, pem: &[u8]| {
            let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
            let found = found.map_err(|_| format!("{key}: it is not PEM"))?;
            if found.is_empty() { Err(format!("{key}: contains no certificate")) } else { Ok(found) }
        };
        let config = match self.tls_files.authorities()? {
            Some(pem) => {
                RustlsConnectorConfig::default().with_parsable_certificates(certificates("ca_file", &pem)?)
            }
            None => RustlsConnectorConfig::new_with_native_certs()
                .map_err(|error| format!("reading the system's certificate authorities: {error}"))?,
        };
        let connector = match self.tls_files.identity()? {
            Some(Identity { cert, key }) => {
                let key = PrivateKeyDer::from_pem_slice(&key)
                    .map_err(|_| "key_file: contains no private key".to_owned())?;
                config.connector_with_single_cert(certificates("cert_file", &cert)?, key)
            }
            None => config.connector_with_no_client_auth(),
        };
        connector.map_err(|error| format!("ca_file, cert_file or key_file: {error}"))
    }
}

/// Parses an address. Errors do not contain it: it may hold a password.
fn address(url: &SecretString) -> Option<Url> {
    let address = Url::parse(url.expose_secret()).ok()?;
    (matches!(address.scheme(), "amqp" | "amqps") && address.host_str().is_some_and(|host| !host.is_empty()))
        .then_some(address)
}
