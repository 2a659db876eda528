//! Gateways that are fed from a stream of NATS JetStream, so that the log is read once for all of them.
//!
//! ```text
//!  log --> feeder --> stream --+--> gateway: ring --> sessions
//!                              +--> gateway: ring --> sessions
//!                              :
//! ```
//!
//! The feeder is the one gateway that holds an advisory lock. What it reads it writes to the stream, a
//! message for each part of the log, and each message says which part: the cursor before it, and the cursor
//! behind it. So a gateway sees when a message is missing. Its ring then begins anew behind the gap, and its
//! clients read the gap from the log.
//!
//! The stream decides who feeds: a message is taken only behind the one that its feeder knows as the last. A
//! feeder that takes over goes on where the last message ends.

mod feeder;
mod follower;
mod line;
mod written;

use std::time::Duration;

use crate::sinks::nats;

pub(super) use self::{feeder::Feeder, follower::Follower};

/// The stream by which gateways are fed.
#[derive(Debug, Clone)]
pub struct Nats {
    /// How it connects.
    pub connection: nats::Config,
    /// Name of the stream. Each outbox has one of its own.
    pub stream: String,
    /// Subject of its messages, and it has no other. Gateways ask the feeder on this subject and `.ask`.
    pub subject: String,
    /// How long messages are kept, if the stream is made.
    pub max_age: Duration,
    /// Most bytes that are kept, if the stream is made.
    pub max_bytes: u64,
    /// On how many servers each message is kept, 1 to 5, if the stream is made.
    pub replicas: usize,
}

impl Nats {
    /// The defaults with this connection.
    #[must_use]
    pub fn new(connection: nats::Config) -> Self {
        Self {
            connection,
            stream: "pgoutbox_live".to_owned(),
            subject: "pgoutbox.live".to_owned(),
            max_age: Duration::from_secs(3_600),
            max_bytes: 1 << 30,
            replicas: 1,
        }
    }

    /// Checks that the servers can be reached, and that the stream is fit for it or is not made yet. Changes
    /// nothing.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self) -> Result<(), String> {
        line::Line::check(self).await
    }
}
