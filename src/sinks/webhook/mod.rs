//! The webhook sink: an HTTP request for each event, as in the Standard Webhooks specification, delivered at
//! least once.
//!
//! One client serves all targets. It reuses connections, never follows redirects, ignores proxies of the
//! environment, and never decompresses responses. If a reused connection turns out to be closed before a byte
//! was sent, the client sends the request on another one. Once bytes may have been sent, a failed attempt is
//! reported as ambiguous.

mod answer;
mod batch;
mod client;
mod connect;
pub mod document;
mod failure;
mod room;
pub mod sign;
mod target;
mod wire;

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::time::Instant;

#[cfg(feature = "cli")]
pub(crate) use self::connect::trust;
pub use self::target::Target;
use crate::{
    delivery::{Outcome, Reason},
    sink::{
        Batch, Outgoing, Preview, Problem, Report, Sink,
        egress::{Egress, Guard},
        secret::Secrets,
    },
};

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
        source: Option<rustls::pki_types::pem::Error>,
    },
    /// The address of the proxy is not valid.
    #[error("reading egress.proxy: must be an http or https URL")]
    Proxy,
    /// The client cannot be built, usually because the system has no certificate authorities.
    #[error("setting up the HTTP client; install the package ca-certificates or set egress.ca_file")]
    Client(#[source] rustls::Error),
}

/// Sends events to URLs.
pub struct Webhook {
    client: client::Client,
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
        Ok(Self { client: client::Client::new(egress, &guard)?, guard, secrets })
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

    fn preview(&self, target: &Target, delivery: &Outgoing) -> Option<Result<Preview, Problem>> {
        let message = match target.message(std::slice::from_ref(delivery)) {
            Ok(message) => message,
            Err(length) => return Some(Err(too_large(length).into())),
        };
        let (headers, body) = target.sign(message, seconds(delivery.attempted_at));
        let body = String::from_utf8_lossy(&body).into_owned();
        Some(Ok(Preview { head: target.head(&headers), body }))
    }
}

/// Seconds since 1970, and no less than 0.
fn seconds(at: DateTime<Utc>) -> i64 {
    at.timestamp().max(0)
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
        let until = Instant::now() + target.timeout;
        let (headers, body) = target.sign(message, seconds(now.into()));
        let mut request = client::Request::new(body.into());
        *request.method_mut() = target.method.clone();
        *request.uri_mut() = target.uri.clone();
        *request.headers_mut() = headers;
        match self.client.send(request, until).await {
            Ok(response) => answer::report(response, target, now).await,
            Err(error) => (failure::failure(&error, target), None),
        }
    }
}
