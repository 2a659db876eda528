//! From what a sink reports to what the relay records. Pure.

use std::time::Duration;

use super::RetryPolicy;

/// Why an attempt did not succeed: a closed set of stable codes, stored, used as metric labels and documented.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal,)*) => {
        /// Why an attempt failed or a delivery was given up. The codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[doc = $doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The stable snake_case code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$name => $code,)* }
            }

            /// What it means, in a sentence.
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
    /// the destination answered 410: it is gone
    Gone = "gone",
    /// the complete body is larger than the destination takes; for a webhook, than 1 MiB
    BodyTooLarge = "body_too_large",
    /// the destination refused the relay's credentials or rights
    AccessDenied = "access_denied",
    /// the topic, stream, exchange, table or function does not exist at the destination
    TargetMissing = "target_missing",
    /// the destination took the event and had nobody to give it to
    Unroutable = "unroutable",
    /// the destination has no room: its disk, stream, memory or queue is full
    DestinationFull = "destination_full",
    /// the destination answered with an error of its own
    Refused = "refused",
    /// the receiver of a batch listed this event as failed
    NotAcknowledged = "not_acknowledged",
    /// the subscription's transform cannot be evaluated for this event, or gives what JSON cannot hold
    TransformFailed = "transform_failed",
    /// the payload does not fit the schema of its event type, whose mode is reject
    SchemaMismatch = "schema_mismatch",
    /// the payload cannot be brought to the version the subscription wants: no upcast, one that fails, or a higher version
    UpcastFailed = "upcast_failed",
    /// a SQL function raised an error
    FunctionFailed = "function_failed",
    /// a handler returned an error
    HandlerFailed = "handler_failed",
    /// the payload is not what the handler or the destination takes
    PayloadUnusable = "payload_unusable",
    /// a field of the subscription's config names something this event does not have
    TemplateFailed = "template_failed",
    /// the sink panicked
    SinkPanicked = "sink_panicked",
    /// the sink did not report on every delivery: a bug in it
    SinkBroken = "sink_broken",
    /// the relay could not renew its lease in time and stopped the attempt
    LeaseLost = "lease_lost",
    /// the relay was stopped while the attempt was under way
    RelayStopped = "relay_stopped",
    /// three claims ended without a verdict: the event seems to kill the relay
    RelayKilled = "relay_killed",
    /// it has been owed for longer than the subscription's max_age
    Expired = "expired",
    /// the event is no longer in the log, or its payload has more than 256 KiB when its numbers are written out
    EventUnreadable = "event_unreadable",
}

/// What a sink reports about one delivery. Whether and when to try again is not its business.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The destination has it.
    Delivered,
    /// It may work later. `after`: the destination asked for a pause of this length.
    Retry {
        /// Why.
        reason: Reason,
        /// The pause the destination asked for (Retry-After), for the whole subscription.
        after: Option<Duration>,
    },
    /// It will never work.
    Rejected {
        /// Why.
        reason: Reason,
    },
    /// The destination is gone for good (410): the subscription ends, its deliveries are held.
    Gone,
}

impl Outcome {
    /// The stable code of its kind, as stored in `outbox.attempts.outcome` and used as a metric label.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry { .. } => "retry",
            Self::Rejected { .. } => "rejected",
            Self::Gone => "gone",
        }
    }

    /// Why it did not succeed.
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
    /// Done: the delivery is deleted.
    Settled,
    /// Due again after this wait.
    RetryIn(Duration),
    /// Given up: copied to the dead letters.
    DeadLetter {
        /// Why.
        reason: Reason,
    },
    /// The subscription is gone: the delivery is held, without a lease, and not attempted.
    SubscriptionGone,
}

/// The longest pause a Retry-After may impose: one hour.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(3_600);

/// Turns an outcome into a verdict. `attempt` counts from 1; `age` is that of the event; `seed` decides the jitter.
#[must_use]
pub fn verdict(outcome: &Outcome, attempt: u32, age: Duration, policy: &RetryPolicy, seed: u64) -> Verdict {
    match *outcome {
        Outcome::Delivered => Verdict::Settled,
        Outcome::Gone => Verdict::SubscriptionGone,
        Outcome::Rejected { reason } => Verdict::DeadLetter { reason },
        Outcome::Retry { reason, .. } if attempt >= policy.max_attempts => Verdict::DeadLetter { reason },
        Outcome::Retry { .. } if age >= policy.max_age => Verdict::DeadLetter { reason: Reason::Expired },
        Outcome::Retry { after, .. } => {
            // A pause only lengthens: scheduled waits may well exceed the longest pause.
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
        fn a_pause_only_lengthens_the_wait_and_never_beyond_an_hour(attempt in 1u32..12, seed: u64, asked in 0u64..u64::MAX / 2) {
            let policy = RetryPolicy::default();
            let wait = policy.wait(attempt, seed);
            let outcome = Outcome::Retry { reason: Reason::RateLimited, after: Some(Duration::from_secs(asked)) };
            let Verdict::RetryIn(paused) = verdict(&outcome, attempt, Duration::ZERO, &policy, seed) else {
                return Err(TestCaseError::fail("expected a retry"));
            };
            prop_assert!(paused >= wait);
            prop_assert!(paused <= wait.max(LONGEST_PAUSE));
        }
    }
}
