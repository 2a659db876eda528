//! Settings of `[sinks.redis]`. Opens no connection.

use std::time::Duration;

use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
    io::tcp::TcpSettings,
};
use secrecy::{ExposeSecret, SecretString};

use super::answer;
use crate::sink::{
    Settings,
    tls::{Identity, TlsFiles},
};

/// Default of `timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Connection to a Redis server: `[sinks.redis]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `redis://HOST:PORT/DB` or `rediss://…`. It may contain user and password.
    pub url: SecretString,
    /// User; overrides the one in the address.
    pub username: Option<String>,
    /// Password; overrides the one in the address.
    pub password: Option<SecretString>,
    /// Certificates for rediss.
    pub tls_files: TlsFiles,
    /// Timeout of the answers to a batch, 100 ms to 30 s.
    pub timeout: Duration,
}

impl Config {
    /// The defaults with this address.
    #[must_use]
    pub fn new(url: SecretString) -> Self {
        Self { url, username: None, password: None, tls_files: TlsFiles::default(), timeout: TIMEOUT }
    }

    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let url = settings.secret("url");
        let url = settings.require("url", url);
        let config = Self {
            username: settings.text("username"),
            password: settings.secret("password"),
            tls_files: TlsFiles::read(settings),
            timeout: settings
                .duration("timeout", Duration::from_millis(100)..=Duration::from_secs(30))
                .unwrap_or(TIMEOUT),
            url: url?,
        };
        settings.refuse_all(config.problems());
        Some(config)
    }

    /// Invalid keys, each with a message.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let url = match self.address() {
            None => Some("must be redis://HOST:PORT/DB or rediss://HOST:PORT/DB"),
            Some(address)
                if !matches!(address.addr(), ConnectionAddr::TcpTls { .. }) && self.tls_files.is_set() =>
            {
                Some("must begin with rediss:// if certificates are set")
            }
            Some(_) => None,
        };
        url.map(|problem| ("url", problem.to_owned())).into_iter().chain(self.tls_files.problem()).collect()
    }

    /// A client of this server. Does not connect.
    pub(super) fn client(&self) -> Result<Client, String> {
        if let Some((key, problem)) = self.problems().into_iter().next() {
            return Err(format!("{key}: {problem}"));
        }
        let address = self.address().ok_or("url: not an address of Redis")?;
        let mut redis = address.redis_settings().clone().set_skip_set_lib_name();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = &self.password {
            redis = redis.set_password(password.expose_secret());
        }
        let address =
            address.set_redis_settings(redis).set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let root_cert = self.tls_files.authorities()?;
        let client_tls = self
            .tls_files
            .identity()?
            .map(|Identity { cert, key }| ClientTlsConfig { client_cert: cert, client_key: key });
        let client = if root_cert.is_some() || client_tls.is_some() {
            Client::build_with_tls(address, TlsCertificates { client_tls, root_cert })
        } else {
            Client::open(address)
        };
        client.map_err(|error| format!("ca_file, cert_file or key_file: {}", answer::text(&error)))
    }

    fn address(&self) -> Option<ConnectionInfo> {
        let address = self.url.expose_secret().into_connection_info().ok()?;
        match address.addr() {
            ConnectionAddr::Tcp(..) | ConnectionAddr::TcpTls { insecure: false, .. } => Some(address),
            _ => None,
        }
    }
}
