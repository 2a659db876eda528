//! The only room that talks to the relay's own database: a method for each file in `sql/`. Decides nothing.

mod connection;
mod cursor;
mod deliveries;
mod error;
mod event_types;
mod functions;
mod relays;
mod routing;
mod starts;
mod subscriptions;

pub use connection::{ConnectionSettings, Store, settings};
pub use cursor::Cursor;
pub use deliveries::{AttemptRow, Backlog, Batch, Claim, Claimed, DeadRow, DueSubscription};
pub use error::{Error, Kind};
pub use event_types::LoadedTypes;
pub use functions::{CallError, Called, Functions};
pub use relays::{RelayReport, SubscriptionReport};
pub use routing::{Advance, NewDelivery, NewEvent, Read};
pub use starts::{Past, Start};
pub use subscriptions::Loaded;
