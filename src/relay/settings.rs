//! Settings of a relay, as in `[relay]`.

use std::time::Duration;

use super::retention::Retention;

/// The settings of one relay.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name in logs, `application_name` and attempt rows, unique among relays; default: `pgoutbox-` and the
    /// process id.
    pub name: String,
    /// Name of the environment, such as production. It must be that of the outbox.
    pub environment: String,
    /// Most deliveries in flight or answered and not recorded: a killed relay repeats no more than these.
    pub permits: u32,
    /// Most deliveries in flight for a subscription without `max_in_flight`.
    pub permits_per_subscription: u32,
    /// How long deliveries are reserved for this relay. Renewed while the relay holds them.
    pub lease: Duration,
    /// How long a stop waits for deliveries in flight.
    pub drain: Duration,
    /// Interval between looks for work without a notification. `None` for none.
    pub poll: Option<Duration>,
    /// Age of a subscription's oldest owed event from which its backlog is announced as
    /// `outbox.subscription.backlog`. `None` for never.
    pub backlog_alert: Option<Duration>,
    /// Which attempts are recorded in `outbox.attempts`.
    pub attempt_log: AttemptLog,
    /// For how long what is kept, as in `[retention]`.
    pub retention: Retention,
}

/// Which attempts are recorded in `outbox.attempts`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AttemptLog {
    /// Every attempt.
    All,
    /// Attempts that failed are recorded in `outbox.attempts`.
    Failures,
    /// Nothing is recorded in `outbox.attempts`.
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
            backlog_alert: Some(Duration::from_secs(15 * 60)),
            attempt_log: AttemptLog::Failures,
            retention: Retention::default(),
        }
    }
}
