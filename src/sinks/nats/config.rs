//! Settings of `[sinks.nats]`, and the client's options made from them. Opens no connection.

use std::{fs, path::PathBuf, time::Duration};

use async_nats::{ConnectOptions, ServerAddr};
use secrecy::{ExposeSecret, SecretString};

use super::{CONNECT_DEADLINE, message};
use crate::sink::{Settings, tls::TlsFiles};

/// Default of `timeout`.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of pings. The client gives up after three without an answer.
const PING: Duration = Duration::from_secs(5);

/// Connection to a NATS system: `[sinks.nats]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Servers, each `nats://HOST:PORT` or `tls://HOST:PORT`, without user and password.
    pub servers: Vec<String>,
    /// User; requires `password`.
    pub user: Option<String>,
    /// Password of that user.
    pub password: Option<SecretString>,
    /// Token, instead of user and password.
    pub token: Option<SecretString>,
    /// File with a JWT and its key, read for each connection.
    pub creds_file: Option<PathBuf>,
    /// Seed of an nkey.
    pub nkey: Option<SecretString>,
    /// Certificates; setting any enables TLS.
    pub tls_files: TlsFiles,
    /// Prefix of the inboxes for acknowledgements; none means `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// Timeout of publishing a batch and its acknowledgements, 100 ms to 30 s.
    pub timeout: Duration,
}

impl Config {
    /// The defaults with these servers.
    #[must_use]
    pub fn new(servers: Vec<String>) -> Self {
        Self {
            servers,
            user: None,
            password: None,
            token: None,
            creds_file: None,
            nkey: None,
            tls_files: TlsFiles::default(),
            inbox_prefix: None,
            timeout: TIMEOUT,
        }
    }

    /// Reads the keys of a section; none: a required one is missing. The section learns what is wrong.
    pub(crate) fn read(settings: &mut Settings<'_>) -> Option<Self> {
        let servers = settings.list("servers");
        let servers = settings.require("servers", servers);
        let config = Self {
            user: settings.text("user"),
            password: settings.secret("password"),
            token: settings.secret("token"),
            creds_file: settings.path("creds_file"),
            nkey: settings.secret("nkey"),
            tls_files: TlsFiles::read(settings),
            inbox_prefix: settings.text("inbox_prefix"),
            timeout: settings
                .duration("timeout", Duration::from_millis(100)..=Duration::from_secs(30))
                .unwrap_or(TIMEOUT),
            servers: servers?,
        };
        settings.refuse_all(config.problems());
        Some(config)
    }

    /// Invalid keys, each with a message.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.addresses().is_empty() {
            let problem =
                "must be addresses such as nats://HOST:PORT or tls://HOST:PORT, without user and password";
            problems.push(("servers", problem.to_owned()));
        }
        if self.user.is_some() != self.password.is_some() {
            let key = if self.user.is_some() { "user" } else { "password" };
            problems.push((key, "must be set together with the other of user and password".to_owned()));
        }
        problems.extend(self.tls_files.problem());
        if self.inbox_prefix.as_deref().is_some_and(|prefix| !message::is_subject(prefix)) {
            problems.push(("inbox_prefix", "must be a subject, such as _INBOX_PGOUTBOX".to_owned()));
        }
        problems
    }

    /// Checks the configuration without connecting.
    pub(super) fn usable(&self) -> Result<(), String> {
        if let Some((key, problem)) = self.problems().into_iter().next() {
            return Err(format!("{key}: {problem}"));
        }
        self.tls_files.exist()?;
        if let Some(path) = &self.creds_file {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("creds_file {}: {error}", path.display()))?;
            ConnectOptions::with_credentials(&text)
                .map_err(|_| format!("creds_file {}: contains no credentials", path.display()))?;
        }
        Ok(())
    }

    /// All servers; empty if one of them is not an address.
    pub(super) fn addresses(&self) -> Vec<ServerAddr> {
        self.servers.iter().map(|server| address(server)).collect::<Option<_>>().unwrap_or_default()
    }

    /// The client's options.
    ///
    /// # Errors
    /// When `creds_file` cannot be read.
    pub(super) async fn options(&self) -> Result<ConnectOptions, String> {
        let servers = self.servers.len().max(1);
        let each = CONNECT_DEADLINE / u32::try_from(servers).unwrap_or(u32::MAX);
        let TlsFiles { ca_file, cert_file, key_file } = &self.tls_files;
        let mut options = ConnectOptions::new()
            .name("pgoutbox")
            .connection_timeout(each.max(Duration::from_secs(1)))
            .max_reconnects(servers)
            .ping_interval(PING)
            .require_tls(ca_file.is_some() || cert_file.is_some());
        if let (Some(user), Some(password)) = (&self.user, &self.password) {
            options = options.user_and_password(user.clone(), password.expose_secret().to_owned());
        }
        if let Some(token) = &self.token {
            options = options.token(token.expose_secret().to_owned());
        }
        if let Some(seed) = &self.nkey {
            options = options.nkey(seed.expose_secret().to_owned());
        }
        if let Some(path) = &self.creds_file {
            let unreadable =
                || format!("creds_file {}: cannot be read or contains no credentials", path.display());
            options = options.credentials_file(path).await.map_err(|_| unreadable())?;
        }
        if let Some(path) = ca_file {
            options = options.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (cert_file, key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        if let Some(prefix) = &self.inbox_prefix {
            options = options.custom_inbox_prefix(prefix);
        }
        Ok(options)
    }
}

fn address(server: &str) -> Option<ServerAddr> {
    let address: ServerAddr = server.parse().ok()?;
    let plain = matches!(address.scheme(), "nats" | "tls")
        && address.username().is_none()
        && address.password().is_none();
    plain.then_some(address)
}
