//! What can become of an event for one subscription: the closed set of statuses, each with its meaning.

use serde::Serialize;

/// Declares the closed set of statuses, each with its group and meaning. Codes are those of
/// `outbox.explain`.
macro_rules! statuses {
    ($($(#[doc = $doc:literal])* $name:ident = $code:literal, $group:ident;)*) => {
        /// What became of an event for one subscription. The codes are stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, sqlx::Type)]
        #[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
        #[serde(rename_all = "snake_case")]
        #[sqlx(type_name = "text", rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum TraceStatus { $($(#[doc = $doc])* $name,)* }

        impl TraceStatus {
            /// Every status, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Stable snake_case code, as `outbox.explain` returns it.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)* }
            }

            /// Meaning, as one sentence.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*),)* }
            }

            /// What it comes to.
            #[must_use]
            pub const fn group(self) -> TraceGroup {
                match self { $(Self::$name => TraceGroup::$group,)* }
            }
        }
    };
}

statuses! {
    /// the attempt log has a successful attempt
    Delivered = "delivered", Delivered;
    /// nothing is owed any more and no success is recorded: it was delivered, which the attempt log
    /// records only with `relay.attempt_log = "all"`, or an operator cancelled or discarded it
    Settled = "settled", Settled;
    /// a relay holds it: the attempt is under way or begins soon
    InFlight = "in_flight", Waiting;
    /// the last attempt failed; it waits for the next one
    Retrying = "retrying", Waiting;
    /// an earlier event of its key waits, and its subscription is ordered
    BehindKey = "behind_key", Waiting;
    /// an earlier event of its key became a dead letter, and the subscription parks such keys
    Parked = "parked", Waiting;
    /// the application scheduled it for later (`deliver_after`)
    Scheduled = "scheduled", Waiting;
    /// it is due and waits for its turn
    Due = "due", Waiting;
    /// it waits until its subscription has room
    Backlog = "backlog", Waiting;
    /// the relay that held it is gone or has given it back; another takes it over
    LeaseEnded = "lease_ended", Waiting;
    /// a relay died while it held it; it is tried again with few others
    Suspect = "suspect", Waiting;
    /// an operator paused the subscription
    Paused = "paused", Waiting;
    /// the destination asked for a pause (`Retry-After`)
    PausedByDestination = "paused_by_destination", Waiting;
    /// the breaker of a relay is open because the destination fails
    BreakerOpen = "breaker_open", Waiting;
    /// a relay cannot use the subscription as it is written
    Invalid = "invalid", Waiting;
    /// the destination answered 410; what was committed before is held
    Gone = "gone", Waiting;
    /// the subscription was disabled
    Disabled = "disabled", Waiting;
    /// it is in the log, and no routing step has come to it
    NotRouted = "not_routed", Waiting;
    /// the subscription receives past events and has not come to this one
    Backfill = "backfill", Waiting;
    /// a newer event of its key superseded it before it was sent
    Superseded = "superseded", Settled;
    /// it was given up and is a dead letter
    DeadLetter = "dead_letter", GivenUp;
    /// it was given up because it had been owed for longer than `retry.max_age`
    Expired = "expired", GivenUp;
    /// it was given up unsent, because it killed relays or cannot be read
    Quarantined = "quarantined", GivenUp;
    /// a condition of the subscription does not hold; the reason names it
    Unwanted = "unwanted", NotOwed;
    /// `match` or the filter cannot be evaluated for it, so it is not sent
    ConditionFailed = "condition_failed", NotOwed;
    /// it was routed before the subscription was made, or was published before its `start`
    BeforeStart = "before_start", NotOwed;
    /// it was committed after the destination had answered 410
    AfterGone = "after_gone", NotOwed;
    /// the subscription is a channel: live clients that follow it get the event, and nothing is owed
    Channel = "channel", NotOwed;
    /// the subscription was deleted
    Deleted = "deleted", NotOwed;
    /// nothing is owed, and whether it was wanted depends on a condition that could not be evaluated:
    /// SQL evaluates no filters, `pgoutbox trace` does
    Unknown = "unknown", Unknown;
}

/// What a status comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceGroup {
    /// It has arrived.
    Delivered,
    /// Nothing is owed any more, and no success is recorded.
    Settled,
    /// It is still owed.
    Waiting,
    /// It is a dead letter.
    GivenUp,
    /// It was never owed.
    NotOwed,
    /// It cannot be said.
    Unknown,
}
