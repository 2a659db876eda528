//! pgoutbox: a transactional outbox for PostgreSQL.
//!
//! An application writes an event in the transaction that writes its data ([`Draft::publish`], or plain SQL). A [`Relay`]
//! delivers it to every subscription that wants it, until each one has it or a dead letter says why not.
//!
//! The modules below stand in reading order: what things are, then where they are kept, then what is done with them.

pub mod duration;
pub mod event;
pub mod topic;
pub mod retry;
pub mod verdict;
pub mod subscription;
pub mod delivery;
pub mod sinks;
pub mod egress;
pub mod secret;
pub mod config;
pub mod telemetry;
pub mod logging;
pub mod migrate;
pub mod store;
pub mod relay;
pub mod operate;
pub mod http;
pub mod receiver;
#[doc(hidden)]
pub mod private_postgres;
pub mod demo;
pub mod bench;

pub use event::{Draft, Event};
pub use relay::Relay;
/// Stops a relay: [`Relay::run`] drains when it is cancelled.
pub use tokio_util::sync::CancellationToken;
