//! `[sinks.nats]`: how to reach servers, and the client's options that follow. Never here: a connection.

use std::{fs, path::PathBuf, time::Duration};

use async_nats::{ConnectOptions, ServerAddr};
use secrecy::{ExposeSecret, SecretString};

use super::{CONNECT_DEADLINE, message};
use crate::sink::{Settings, tls::TlsFiles};

/// How long publishing a batch and its acknowledgements may take, when the operator does not say.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which the client asks whether the server is there; it gives up after three such.
const PING: Duration = Duration::from_secs(5);

/// How to reach the servers of one NATS system: `[sinks.nats]`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Servers, `nats://HOST:PORT` or `tls://HOST:PORT`, without user and password.
    pub servers: Vec<String>,
    /// User; goes together with `password`.
    pub user: Option<String>,
    /// Password of that user.
    pub password: Option<SecretString>,
    /// A token in place of user and password.
    pub token: Option<SecretString>,
    /// A file with a JWT and its key; read again for each connection.
    pub creds_file: Option<PathBuf>,
    /// The seed of an nkey.
    pub nkey: Option<SecretString>,
    /// Certificates; naming any asks for TLS.
    pub tls_files: TlsFiles,
    /// What inboxes for acknowledgements begin with; default `_INBOX`.
    pub inbox_prefix: Option<String>,
    /// How long publishing a batch and its acknowledgements may take; 100 ms to 30 s.
    pub timeout: Duration,
}

impl Config {
    /// The defaults for these servers.
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

    pub(super) fn read(settings: &mut Settings<'_>) -> Option<Self> {
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

    /// Keys that cannot be used, and what to write instead.
    fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.addresses().is_empty() {
            let problem =
                "must be addresses such as nats://HOST:PORT or tls://HOST:PORT, without user and password";
            problems.push(("servers", problem.to_owned()));
        }
        if self.user.is_some() != self.password.is_some() {
            let key = if self.user.is_some() { "user" } else { "password" };
            problems.push((key, "needs the other one of user and password".to_owned()));
        }
        problems.extend(self.tls_files.problem());
        if self.inbox_prefix.as_deref().is_some_and(|prefix| !message::is_subject(prefix)) {
            problems.push(("inbox_prefix", "must be a subject, such as _INBOX_PGOUTBOX".to_owned()));
        }
        problems
    }

    /// That a connection could be tried with it. Connects to nothing.
    pub(super) fn usable(&self) -> Result<(), String> {
        if let Some((key, problem)) = self.problems().into_iter().next() {
            return Err(format!("{key}: {problem}"));
        }
        self.tls_files.exist()?;
        if let Some(path) = &self.creds_file {
            let text = fs::read_to_string(path)
                .map_err(|error| format!("creds_file {}: {error}", path.display()))?;
            ConnectOptions::with_credentials(&text)
                .map_err(|_| format!("creds_file {}: it holds no credentials", path.display()))?;
        }
        Ok(())
    }

    /// All servers, or none when one of them is no address.
    pub(super) fn addresses(&self) -> Vec<ServerAddr> {
        self.servers.iter().map(|server| address(server)).collect::<Option<_>>().unwrap_or_default()
    }

    /// The client's options.
    ///
    /// # Errors
    /// What is wrong with `creds_file`.
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
                || format!("creds_file {}: it cannot be read or holds no credentials", path.display());
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
