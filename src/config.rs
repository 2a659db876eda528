//! The one typed configuration. Defaults < `pgoutbox.toml` < `PGOUTBOX__SECTION__KEY` < flags; `DATABASE_URL` is honoured.
//! Unknown keys are errors; all mistakes are reported at once. What leaves this file is parsed.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::SecretString;

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
}

/// `[database]`
#[derive(Debug, Clone)]
pub struct Database {
    /// Where the outbox lives.
    pub url: SecretString,
    /// A direct connection for LISTEN beside a pooled `url`; default: `url`.
    pub listen_url: Option<SecretString>,
    /// Connections for routing, claiming and reading; settling and renewing have two more, the listener one.
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
    /// Part of the fence: production, staging, …
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

impl Default for RelayConfig {
    fn default() -> Self {
        Self {
            name: "relay".to_owned(),
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
