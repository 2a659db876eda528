//! The only room that uses the relay's own database: a method for each file in `sql/relay/`. It decides
//! nothing.

mod attempts;
mod backlog;
mod connection;
mod cursor;
mod deliveries;
mod error;
mod event_types;
mod events;
mod gateways;
mod health;
mod identity;
mod inspection;
mod live;
mod log;
mod mark;
mod notify;
mod order;
mod ordering;
mod paces;
mod pages;
mod pool;
mod relays;
mod replays;
mod retention;
mod retry;
mod routing;
pub mod schema;
mod starts;
mod statement;
mod subscriptions;
mod token;
mod urgent;

pub use attempts::AttemptRow;
pub use backlog::{Backlog, LogStatus};
pub use connection::{ConnectionSettings, Settler, Store, connections_wanted, crowded, settings};
pub use cursor::{Advance, Cursor};
pub use deliveries::{
    Batch, Cancelled, Claim, Claimed, DeadRow, DueSubscription, Freshened, Locked, RetryRow,
};
pub use error::{Error, Kind};
pub use event_types::LoadedTypes;
pub use events::{LoadedEvent, NewEvent};
pub use health::HealthReport;
pub use identity::{Promotion, is_new, why_fenced};
pub use inspection::{capture_problems, unsuitable};
pub use live::{Channels, Forgotten, Latest, Snapshot, TooMuch};
pub use log::{Here, Stretch};
pub use mark::Mark;
pub use order::{Keyed, Opened};
pub use ordering::{Coalesce, OnExhausted, Ordering};
pub use paces::{Paced, SlotsReserved, SlotsWanted};
pub use pages::{
    BacklogClaim, Entry, FromBacklog, InBacklog, LeasedPage, PageBatch, Pair, PairDead, PairRetry, PairsBack,
};
pub use relays::{BreakerState, Others, RelayReport, SubscriptionReport};
pub use replays::Replay;
pub use retention::{Done, Kept, Step};
pub(crate) use retry::retry_waits;
pub use routing::{NewDelivery, NewPage, Page, Read, Routed};
pub use starts::{Past, Start};
pub use subscriptions::{
    AskedPause, Loaded, LoadedPauses, StateChange, SubscriptionRow, SubscriptionState, Version,
};
pub use token::{BadToken, Stamp, Token};
pub use urgent::{Looked, Urgent};
