//! The webhook sink: an HTTP request for each event, as in the Standard Webhooks specification, delivered at
//! least once.
//!
//! One client serves all targets. It reuses connections, never follows redirects, ignores proxies of the
//! environment, and never decompresses responses. If a reused connection turns out to be closed before a byte
//! was sent, hyper itself sends the request on another one. Once bytes may have been sent, a failed attempt
//! is reported as ambiguous.

mod answer;
mod batch;
pub mod sign;
mod target;

use std::{
    fmt, fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use serde_json::Value;

pub use self::target::Target;
use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Outgoing, Problem, Report, Sink,
        egress::{Egress, Guard, LOOKUP_DEADLINE},
        secret::Secrets,
    },
};

/// Timeout of name, TCP and TLS together. A little longer than [`LOOKUP_DEADLINE`], so that a slow resolver
/// is reported as such.
const CONNECT_DEADLINE: Duration = LOOKUP_DEADLINE.saturating_add(Duration::from_millis(500));
/// Idle time after which a connection is closed: the name may have another address by now.
const IDLE: Duration = Duration::from_secs(30);
/// Idle connections kept for each host. As many as one subscription may have in flight: with fewer, bursts to
/// one host would keep reconnecting.
const IDLE_PER_HOST: usize = 512;
/// Time that the relay's deadline adds to `timeout`, so that the client reports the timeout itself.
const GRACE: Duration = Duration::from_millis(200);

/// Why the webhook sink cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// The file of additional authorities cannot be read.
    #[error("reading egress.ca_file {path:?}")]
    CaFile {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        source: std::io::Error,
    },
    /// The file of additional authorities is not valid.
    #[error("reading egress.ca_file {path:?}: must contain PEM certificates")]
    Certificates {
        /// Path of the file.
        path: PathBuf,
        /// Error of the parser; none if the file has no certificates.
        source: Option<reqwest::Error>,
    },
    /// The address of the proxy is not valid.
    #[error("reading egress.proxy: must be an http or https URL")]
    Proxy(#[source] reqwest::Error),
    /// The client cannot be built, usually because the system has no certificate authorities.
    #[error("setting up the HTTP client; install the package ca-certificates or set egress.ca_file")]
    Client(#[source] reqwest::Error),
}

/// Sends events to URLs.
pub struct Webhook {
    client: reqwest::Client,
    guard: Guard,
    secrets: Secrets,
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Webhook")
            .field("guard", &self.guard)
            .field("secrets", &self.secrets)
            .finish_non_exhaustive()
    }
}

impl Webhook {
    /// A sink with this egress policy.
    ///
    /// # Errors
    /// When the file of authorities or the proxy is invalid, or the system has no authorities.
    pub fn new(egress: &Egress, secrets: Secrets) -> Result<Self, WebhookError> {
        Self::with_guard(egress, Guard::new(egress), secrets)
    }

    /// A sink with another guard, for example one with another resolver.
    ///
    /// # Errors
    /// Those of [`Webhook::new`].
    pub fn with_guard(egress: &Egress, guard: Guard, secrets: Secrets) -> Result<Self, WebhookError> {
        Ok(Self { client: client(egress, &guard)?, guard, secrets })
    }
}

impl Sink for Webhook {
    const KIND: &'static str = "webhook";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        Ok(Target::parse(config, &self.guard, &self.secrets)?)
    }

    fn destination(&self, target: &Target) -> Option<String> {
        Some(target.destination.clone())
    }

    fn batch(&self, target: &Target) -> Option<Batch> {
        target.batch
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        self.post(target, std::slice::from_ref(delivery)).await.0
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let (report, answer) = self.post(target, deliveries).await;
        batch::reports(report, answer.as_ref(), deliveries)
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        Ok(answer::can_be_reached(&self.client, target).await?)
    }

    fn deadline(&self, target: &Target) -> Duration {
        (target.timeout + GRACE).min(target::LONGEST_TIMEOUT)
    }

    fn preview(&self, target: &Target, delivery: &Outgoing) -> Option<Result<String, Problem>> {
        let message = target.message(std::slice::from_ref(delivery)).map_err(too_large);
        Some(
            message.map(|message| String::from_utf8_lossy(&message.body).into_owned()).map_err(Problem::from),
        )
    }
}

fn too_large(length: usize) -> String {
    format!("the body has {length} bytes; at most {}", target::LARGEST_BODY)
}

impl Webhook {
    /// Sends one request. The second value is what acknowledges a batch.
    async fn post(&self, target: &Target, deliveries: &[Outgoing]) -> (Report, Option<batch::Answer>) {
        let message = match target.message(deliveries) {
            Ok(message) => message,
            Err(length) => {
                let reason = Reason::BodyTooLarge;
                // Other events may have made it too large: retries are sent alone.
                let outcome = if deliveries.len() > 1 {
                    Outcome::Retry { reason, after: None }
                } else {
                    Outcome::Rejected { reason }
                };
                return (Report::from(outcome).with_answer(too_large(length)), None);
            }
        };
        let now = SystemTime::from(
            deliveries.first().map_or(chrono::DateTime::UNIX_EPOCH, |first| first.attempted_at),
        );
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut request = reqwest::Request::new(target.method.clone(), target.url.clone());
        let (headers, body) = target.sign(message, i64::try_from(seconds).unwrap_or_default());
        *request.headers_mut() = headers;
        *request.timeout_mut() = Some(target.timeout);
        *request.body_mut() = Some(body.into());
        match self.client.execute(request).await {
            Ok(response) => answer::report(response, target, now).await,
            Err(error) => (answer::failure(error, target), None),
        }
    }
}

fn client(egress: &Egress, guard: &Guard) -> Result<reqwest::Client, WebhookError> {
    // The client uses the process's crypto provider. The embedding program may have installed one
    // already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .tls_version_min(reqwest::tls::Version::TLS_1_2)
        .connect_timeout(CONNECT_DEADLINE)
        .timeout(target::LONGEST_TIMEOUT)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .tcp_nodelay(true);
    builder = match &egress.proxy {
        // The proxy then resolves names, except its own, which the operator chose.
        Some(proxy) => builder.proxy(reqwest::Proxy::all(proxy.clone()).map_err(WebhookError::Proxy)?),
        None => builder.dns_resolver(guard.clone()),
    };
    if let Some(path) = &egress.ca_file {
        let pem = fs::read(path).map_err(|source| WebhookError::CaFile { path: path.clone(), source })?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|source| WebhookError::Certificates { path: path.clone(), source: Some(source) })?;
        if certificates.is_empty() {
            return Err(WebhookError::Certificates { path: path.clone(), source: None });
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(WebhookError::Client)
}
