//! Live clients: browsers and services that follow events as they are committed.
//!
//! ```text
//!  log --> feed --> ring --+--> session --> one client, by WebSocket or server-sent events
//!   |                      |
//!   +---> history ---------+    for clients that are behind the ring
//! ```
//!
//! The log is the buffer. A client is nothing but a cursor: nothing is owed to it. The feed reads new events
//! once for all clients into the ring, a bounded part of the log in memory. A client that returns, or that is
//! slower than the ring, reads the log from its own cursor until it has caught up with the ring. Its cursor
//! as text is the token that each event carries.
//!
//! A crash here costs nothing: clients come back with their tokens.

#[cfg(feature = "nats")]
pub mod backplane;
pub mod caller;
mod channels;
mod counted;
mod doorbell;
mod feed;
mod gateway;
mod history;
mod message;
mod payloads;
mod places;
mod ring;
mod selection;
mod session;
mod settings;
mod source;

pub use self::{
    counted::{Closed, Fault, Transport},
    gateway::{Gateway, Room, Sources},
    message::{Code, Refusal, Request, Subscribe, error_message},
    places::Full,
    selection::{Format, Frame},
    session::{Ended, Next, Session},
    settings::{Backplane, Settings},
};
