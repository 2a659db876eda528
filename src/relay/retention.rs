//! For how long what is kept, as in `[retention]`. Pure.

use std::time::Duration;

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// For how long events, attempts, ids and dead letters are kept.
///
/// Each relay acts by its own settings, so what one of several relays keeps for the shortest time is kept for
/// that time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Events, 1 hour to 10 years. Not dropped while something of them is owed. `None`: forever.
    pub events: Option<Duration>,
    /// Rows of `outbox.attempts`, 1 hour to 10 years. `None`: forever.
    pub attempts: Option<Duration>,
    /// Ids given to `outbox.publish`, 1 hour to 10 years: for so long the same id is the same event.
    /// `None`: forever.
    pub event_ids: Option<Duration>,
    /// Dead letters, 1 hour to 10 years after they were given up. `None`: forever.
    pub dead_letters: Option<Duration>,
    /// What happens to events that are old enough and still owed.
    pub laggard: Laggard,
    /// Longest time from the start of a relay to its first look; it is shortened at random.
    pub first_look: Duration,
    /// Time between two looks.
    pub look_every: Duration,
}

/// What happens to events that are old enough to be dropped and still owed to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Laggard {
    /// They stay, with all events of their partition.
    Keep,
    /// They become dead letters with the reason `retention`, and leave.
    DeadLetter,
}

impl Laggard {
    /// As in settings and in SQL.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::DeadLetter => "dead-letter",
        }
    }
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            events: Some(30 * DAY),
            attempts: Some(30 * DAY),
            event_ids: Some(30 * DAY),
            dead_letters: None,
            laggard: Laggard::Keep,
            first_look: Duration::from_secs(30),
            look_every: Duration::from_secs(60),
        }
    }
}
