//! The only room that talks to the relay's own database: a method for each file in `sql/`. Decides nothing.

mod connection;
mod cursor;
mod deliveries;
mod error;
mod event_types;
mod pages;
mod relays;
mod routing;
pub mod schema;
mod starts;
mod subscriptions;

pub use connection::{ConnectionSettings, Store, settings};
pub use cursor::Cursor;
pub use deliveries::{AttemptRow, Backlog, Batch, Claim, Claimed, DeadRow, DueSubscription};
pub use error::{Error, Kind};
pub use event_types::LoadedTypes;
pub use pages::{
    BacklogClaim, Entry, InBacklog, LeasedPage, PageBatch, Pair, PairDead, PairRetry, PairsBack,
};
pub use relays::{BreakerState, RelayReport, SubscriptionReport};
pub use routing::{Advance, NewDelivery, NewEvent, NewPage, Read, Routed};
pub use starts::{Past, Start};
pub use subscriptions::{Loaded, SubscriptionRow, SubscriptionState};
