//! What an outcome shows about its destination. Pure.

use crate::delivery::{Outcome, Reason};

/// Whether the attempt timed out, which may be due to the host or to the program behind it.
pub(super) fn is_timeout(outcome: &Outcome) -> bool {
    matches!(outcome.reason(), Some(Reason::Timeout))
}

/// What an outcome shows about its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Evidence {
    /// The host cannot be reached.
    FailedHost,
    /// The destination fails for this subscription.
    Failed,
    /// The destination works.
    Works,
    /// The destination answers; the failure is about this event.
    Answers,
    /// The attempt did not reach the destination, or its failure has another cause.
    Nothing,
}

impl Evidence {
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Delivered | Outcome::Gone => Self::Works,
            Outcome::Rejected { reason } | Outcome::Retry { reason, .. } => match reason {
                Reason::DnsFailed
                | Reason::ConnectFailed
                | Reason::TlsFailed
                | Reason::ProxyFailed
                | Reason::ForbiddenAddress => Self::FailedHost,
                Reason::Timeout
                | Reason::BrokenAnswer
                | Reason::ServerError
                | Reason::AccessDenied
                | Reason::DestinationFull
                | Reason::RateLimited => Self::Failed,
                Reason::ClientError | Reason::NotAcknowledged => Self::Works,
                Reason::Redirect
                | Reason::Gone
                | Reason::TargetMissing
                | Reason::Unroutable
                | Reason::Refused
                | Reason::FunctionFailed
                | Reason::HandlerFailed => Self::Answers,
                // A sink may refuse a body or payload itself, without asking the destination.
                Reason::BodyTooLarge
                | Reason::PayloadUnusable
                | Reason::TransformFailed
                | Reason::SchemaMismatch
                | Reason::UpcastFailed
                | Reason::TemplateFailed
                | Reason::SinkPanicked
                | Reason::SinkBroken
                | Reason::LeaseLost
                | Reason::NoResources
                | Reason::RelayStopped
                | Reason::RelayKilled
                | Reason::Expired
                | Reason::Cancelled
                | Reason::Retention
                | Reason::EventUnreadable => Self::Nothing,
            },
        }
    }
}

/// The outcome that tells most of the destination: the first that tells whether it works, else whether it
/// answers.
pub(in crate::relay) fn clearest<'o>(outcomes: impl Iterator<Item = &'o Outcome>) -> Option<usize> {
    let unclear = |outcome: &Outcome| match Evidence::of(outcome) {
        Evidence::FailedHost | Evidence::Failed | Evidence::Works => 0,
        Evidence::Answers => 1,
        Evidence::Nothing => 2,
    };
    outcomes.enumerate().min_by_key(|(_, outcome)| unclear(outcome)).map(|(at, _)| at)
}
