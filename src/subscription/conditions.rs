//! What a subscription asks of an event, and what came of asking.

/// Whether a subscription wants an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All conditions hold.
    Yes,
    /// This condition does not hold.
    No(Condition),
    /// `match` or the filter could not be evaluated. The event is not sent and is counted. The message
    /// repeats nothing of the event.
    Failed(String),
}

/// A condition on events, in the order of evaluation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `organization`
    Organization,
    /// `topics`
    Topics,
    /// `keys`
    Keys,
    /// The event says what happened to this very subscription.
    Itself,
    /// `match`
    Match,
    /// This part of `filter`, as text.
    Filter(String),
}

impl std::fmt::Display for Condition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Organization => "organization",
            Self::Topics => "topics",
            Self::Keys => "keys",
            Self::Itself => "itself",
            Self::Match => "match",
            Self::Filter(_) => "filter",
        })
    }
}
