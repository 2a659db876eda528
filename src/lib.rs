//! pgoutbox: a transactional outbox for PostgreSQL.
//!
//! An application writes an event in the transaction that writes its data ([`Event::publish`], or plain SQL). A [`Relay`]
//! delivers it to every subscription that wants it, until each one has it or a dead letter says why not.
//!
//! The modules below stand in reading order: what things are, then where they are kept, then what is done with them.

pub mod bench;
pub mod config;
pub mod delivery;
pub mod demo;
pub mod duration;
pub mod egress;
pub mod event;
pub mod http;
pub mod logging;
pub mod migrate;
pub mod operate;
#[doc(hidden)]
pub mod private_postgres;
pub mod receiver;
pub mod relay;
pub mod retry;
pub mod secret;
pub mod sinks;
pub mod store;
pub mod subscription;
pub mod telemetry;
pub mod topic;
pub mod verdict;

pub use event::{Draft, Event};
pub use relay::Relay;
