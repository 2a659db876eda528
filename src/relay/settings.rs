//! What an operator may say about a relay: `[relay]`.

use std::time::Duration;

/// The settings of one relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name in logs, `application_name` and attempt rows, unique among relays; default: `pgoutbox-` and the
    /// process id.
    pub name: String,
    /// Production, staging, …; shown, not yet compared with the database.
    pub environment: String,
    /// Deliveries in flight at most; also the most copies a killed relay can cause.
    pub permits: u32,
    /// Of these for one subscription at most, where it does not say itself.
    pub permits_per_subscription: u32,
    /// How long a delivery is reserved; renewed while in flight.
    pub lease: Duration,
    /// How long a stop waits for deliveries in flight.
    pub drain: Duration,
    /// How often to look for work when no doorbell rings; `None`: never.
    pub poll: Option<Duration>,
    /// Which attempts are recorded in `outbox.attempts`.
    pub attempt_log: AttemptLog,
}

/// Which attempts are recorded in `outbox.attempts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptLog {
    /// Every attempt.
    All,
    /// Those that did not succeed.
    Failures,
    /// None.
    Off,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: format!("pgoutbox-{}", std::process::id()),
            environment: "default".to_owned(),
            permits: 1_024,
            permits_per_subscription: 512,
            lease: Duration::from_secs(10),
            drain: Duration::from_secs(20),
            poll: Some(Duration::from_secs(1)),
            attempt_log: AttemptLog::Failures,
        }
    }
}
