//! What a subscription says about the events of one key. Words of `outbox.subscriptions`.

use serde::Serialize;

/// Whether the events of a key keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ordering {
    /// Each event is sent as soon as it can be.
    None,
    /// Of the events with one key at most one is in flight, in the order of positions.
    Key,
}

/// What happens to a key when one of its events becomes a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum OnExhausted {
    /// The next event of the key is sent.
    Skip,
    /// The later events of the key wait until that one is redriven or discarded.
    Park,
    /// The subscription is paused.
    Halt,
}

/// Whether only the newest of the waiting events of a key is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Coalesce {
    /// Every event is sent.
    None,
    /// An older event that waits is superseded by a newer one of its key.
    Key,
}

macro_rules! codes {
    ($name:ident { $($variant:ident = $code:literal),+ }) => {
        impl $name {
            /// The word that is stored.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }
        }
    };
}

codes!(Ordering { None = "none", Key = "key" });
codes!(OnExhausted { Skip = "skip", Park = "park", Halt = "halt" });
codes!(Coalesce { None = "none", Key = "key" });
