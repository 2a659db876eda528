//! Turns the outcome that a sink reports into the verdict that the relay records. Pure.

use std::time::Duration;

use super::RetryPolicy;

/// Declares the closed set of reasons. Codes are stored, used as metric labels and documented.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal,)*) => {
        /// Why an attempt failed or a delivery was given up. The codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// Stable snake_case code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// Meaning, as one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Reason::$name => concat!($($doc),*),)* }
            }
        }
    };
}

reasons! {
    /// the name of the destination could not be resolved
    DnsFailed = "dns_failed",
    /// no connection to the destination could be made
    ConnectFailed = "connect_failed",
    /// the TLS handshake failed
    TlsFailed = "tls_failed",
    /// the proxy of `[egress]` cannot be reached or refused; nothing is known of the destination
    ProxyFailed = "proxy_failed",
    /// the destination's address is forbidden by the egress policy; no byte was sent
    ForbiddenAddress = "forbidden_address",
    /// no complete answer came within the attempt's deadline
    Timeout = "timeout",
    /// the connection broke or the answer was not valid
    BrokenAnswer = "broken_answer",
    /// the destination answered with a redirect; redirects are never followed
    Redirect = "redirect",
    /// the destination answered 4xx
    ClientError = "client_error",
    /// the destination answered 429 or 503 and may have asked for a pause
    RateLimited = "rate_limited",
    /// the destination answered 5xx
    ServerError = "server_error",
    /// the destination answered 410 Gone
    Gone = "gone",
    /// the complete body is larger than the destination accepts; for a webhook, 1 MiB
    BodyTooLarge = "body_too_large",
    /// the destination refused the relay's credentials or rights
    AccessDenied = "access_denied",
    /// the topic, stream, exchange, table or function does not exist at the destination
    TargetMissing = "target_missing",
    /// the broker accepted the event but had no queue to route it to
    Unroutable = "unroutable",
    /// the disk, stream, memory or queue of the destination is full
    DestinationFull = "destination_full",
    /// the destination answered with another error
    Refused = "refused",
    /// the receiver of a batch listed this event as failed
    NotAcknowledged = "not_acknowledged",
    /// the subscription's transform cannot be evaluated for this event, or its value is not valid JSON
    TransformFailed = "transform_failed",
    /// the payload does not fit the schema of its event type, whose mode is reject
    SchemaMismatch = "schema_mismatch",
    /// the payload cannot be upcast to the subscription's version: no upcast, one that fails, or a higher
    /// version
    UpcastFailed = "upcast_failed",
    /// a SQL function raised an error
    FunctionFailed = "function_failed",
    /// a handler returned an error
    HandlerFailed = "handler_failed",
    /// the handler or the destination cannot use the payload
    PayloadUnusable = "payload_unusable",
    /// a template in the subscription's config names a field that this event does not have, or makes a name
    /// that cannot be used
    TemplateFailed = "template_failed",
    /// the sink panicked
    SinkPanicked = "sink_panicked",
    /// the sink did not report on every delivery, which is a bug of the sink
    SinkBroken = "sink_broken",
    /// the relay could not renew its lease in time and stopped the attempt
    LeaseLost = "lease_lost",
    /// the relay was stopped during the attempt
    RelayStopped = "relay_stopped",
    /// three claims ended without a verdict; the event seems to crash the relay
    RelayKilled = "relay_killed",
    /// the relay's machine lacks descriptors, ports, memory, a resolver or a network, or a broker or database
    /// gives the relay no more connections or channels; the delivery waits, and no attempt is counted
    NoResources = "no_resources",
    /// the delivery has been owed for longer than the subscription's max_age
    Expired = "expired",
    /// an operator cancelled it
    Cancelled = "cancelled",
    /// the event was older than `retention.events` and still owed, and `retention.laggard` is `dead-letter`
    Retention = "retention",
    /// the event is no longer in the log, or its payload is larger than 256 KiB with its numbers written
    /// out
    EventUnreadable = "event_unreadable",
}

/// What a sink reports about one attempt. The relay decides whether and when to retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination accepted the event.
    Delivered,
    /// The attempt failed and may succeed later.
    Retry {
        /// Why the attempt failed.
        reason: Reason,
        /// Pause that the destination asked for (Retry-After), for the whole subscription.
        after: Option<Duration>,
    },
    /// The attempt failed and would always fail.
    Rejected {
        /// Why the attempt failed.
        reason: Reason,
    },
    /// The destination is gone for good (410). The subscription gets the state `gone`, and its deliveries are
    /// held.
    Gone,
}

impl Outcome {
    /// Stable code, stored in `outbox.attempts.outcome` and used as a metric label.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry { .. } => "retry",
            Self::Rejected { .. } => "rejected",
            Self::Gone => "gone",
        }
    }

    /// Why the attempt failed, if it did.
    #[must_use]
    pub const fn reason(&self) -> Option<Reason> {
        match self {
            Self::Delivered => None,
            Self::Retry { reason, .. } | Self::Rejected { reason } => Some(*reason),
            Self::Gone => Some(Reason::Gone),
        }
    }
}

/// What the relay records about a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The delivery succeeded and is deleted.
    Settled,
    /// The delivery is due again after this wait.
    RetryIn(Duration),
    /// The delivery is given up and becomes a dead letter.
    DeadLetter {
        /// Why it was given up.
        reason: Reason,
    },
    /// The delivery waits for its turn behind an earlier event of its key.
    Waits,
    /// The subscription is gone. The delivery is held without a lease and not attempted.
    SubscriptionGone,
}

/// The longest pause of a Retry-After that is honoured.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// Turns an outcome into a verdict. `attempt` counts from 1; `age` is the time for which the delivery has
/// been owed; `seed` decides the jitter.
#[must_use]
pub fn verdict(outcome: &Outcome, attempt: u32, age: Duration, policy: &RetryPolicy, seed: u64) -> Verdict {
    match *outcome {
        Outcome::Delivered => Verdict::Settled,
        Outcome::Gone => Verdict::SubscriptionGone,
        Outcome::Rejected { reason } => Verdict::DeadLetter { reason },
        Outcome::Retry { reason, .. } if attempt >= policy.max_attempts => Verdict::DeadLetter { reason },
        Outcome::Retry { .. } if age >= policy.max_age => Verdict::DeadLetter { reason: Reason::Expired },
        Outcome::Retry { after, .. } => {
            // A pause only lengthens the wait: a scheduled wait may exceed the longest pause.
            let wait = policy.wait(attempt, seed);
            Verdict::RetryIn(after.map_or(wait, |asked| asked.min(LONGEST_PAUSE).max(wait)))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RETRY: Outcome = Outcome::Retry { reason: Reason::ServerError, after: None };

    #[test]
    fn codes_are_unique_and_snake_case() {
        let mut codes: Vec<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert!(codes.iter().all(|code| code.chars().all(|c| c.is_ascii_lowercase() || c == '_')));
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Reason::ALL.len());
    }

    #[test]
    fn the_last_attempt_ends_in_a_dead_letter() {
        let policy = RetryPolicy::default();
        assert!(matches!(verdict(&RETRY, 11, Duration::ZERO, &policy, 1), Verdict::RetryIn(_)));
        assert_eq!(
            verdict(&RETRY, 12, Duration::ZERO, &policy, 1),
            Verdict::DeadLetter { reason: Reason::ServerError }
        );
    }

    #[test]
    fn an_event_beyond_its_age_is_given_up() {
        let policy = RetryPolicy::default();
        assert_eq!(
            verdict(&RETRY, 1, policy.max_age, &policy, 1),
            Verdict::DeadLetter { reason: Reason::Expired }
        );
        assert_eq!(verdict(&Outcome::Delivered, 1, policy.max_age, &policy, 1), Verdict::Settled);
    }

    proptest! {
        #[test]
        fn a_pause_only_lengthens_the_wait_and_never_beyond_an_hour(
            attempt in 1u32..12,
            seed: u64,
            asked in 0u64..u64::MAX / 2,
        ) {
            let policy = RetryPolicy::default();
            let wait = policy.wait(attempt, seed);
            let after = Some(Duration::from_secs(asked));
            let outcome = Outcome::Retry { reason: Reason::RateLimited, after };
            let Verdict::RetryIn(paused) = verdict(&outcome, attempt, Duration::ZERO, &policy, seed) else {
                return Err(TestCaseError::fail("expected a retry"));
            };
            prop_assert!(paused >= wait);
            prop_assert!(paused <= wait.max(LONGEST_PAUSE));
        }
    }
}
