//! `[sinks.amqp]`: how to reach a server. Never here: a connection.

use std::{fs, path::PathBuf, time::Duration};

use lapin::{
    tcp::{OwnedIdentity, OwnedTLSConfig},
    uri::AMQPUri,
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use crate::config::Settings;

/// How long confirmations may take, when nobody says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A silent server is found out after so long (seconds), unless the address says otherwise.
const HEARTBEAT: u16 = 20;

/// `[sinks.amqp]`
#[derive(Debug, Clone)]
pub struct Config {
    url: SecretString,
    username: Option<String>,
    password: Option<SecretString>,
    ca_file: Option<PathBuf>,
    cert_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
    pub(super) timeout: Duration,
}

impl Config {
    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let url = settings.secret("url");
        let username = settings.text("username");
        let password = settings.secret("password");
        let ca_file = settings.path("ca_file");
        let cert_file = settings.path("cert_file");
        let key_file = settings.path("key_file");
        let timeout = settings.duration("timeout", Duration::from_secs(1)..=Duration::from_secs(45)).unwrap_or(TIMEOUT);
        let url = settings.require("url", url)?;
        match address(&url) {
            None => settings.refuse("url", "must be amqp://HOST:PORT/VHOST or amqps://HOST:PORT/VHOST"),
            Some(address) => {
                if address.scheme() == "amqp" && (ca_file.is_some() || cert_file.is_some()) {
                    settings.refuse("url", "must begin with amqps:// where certificates are given");
                }
            }
        }
        if cert_file.is_some() != key_file.is_some() {
            settings.refuse(if cert_file.is_some() { "cert_file" } else { "key_file" }, "needs the other one of cert_file and key_file");
        }
        Some(Self { url, username, password, ca_file, cert_file, key_file, timeout })
    }

    /// The address with who we are. It holds the password.
    pub(super) fn uri(&self) -> Result<AMQPUri, String> {
        let unusable = || "url: it is not an address of an AMQP server".to_owned();
        let address = address(&self.url).ok_or_else(unusable)?;
        let mut uri: AMQPUri = self.url.expose_secret().parse().map_err(|_| unusable())?;
        uri.authority.host = address.host_str().unwrap_or("localhost").trim_matches(['[', ']']).to_owned();
        if uri.vhost.is_empty() {
            // "amqp://host/" names the virtual host "", which nobody means.
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

    /// The certificates, read anew: they may have been renewed.
    pub(super) fn tls(&self) -> Result<OwnedTLSConfig, String> {
        let read = |key: &str, path: &PathBuf| fs::read(path).map_err(|error| format!("{key} {}: {error}", path.display()));
        let cert_chain = self.ca_file.as_ref().map(|path| read("ca_file", path)).transpose()?;
        let cert_chain = cert_chain.map(String::from_utf8).transpose().map_err(|_| "ca_file: it is not PEM".to_owned())?;
        let identity = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(OwnedIdentity::PKCS8 { pem: read("cert_file", cert)?, key: read("key_file", key)? }),
            _ => None,
        };
        Ok(OwnedTLSConfig { identity, cert_chain })
    }
}

/// What an address says; without it in any error, for it may hold a password.
fn address(url: &SecretString) -> Option<Url> {
    let address = Url::parse(url.expose_secret()).ok()?;
    (matches!(address.scheme(), "amqp" | "amqps") && address.host_str().is_some_and(|host| !host.is_empty())).then_some(address)
}
