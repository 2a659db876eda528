//! Settings of `[realtime]`.

use std::time::Duration;

#[cfg(feature = "nats")]
use super::backplane::Nats;

/// Limits and times of live clients.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whether live clients are served at all.
    pub enabled: bool,
    /// Whether clients may only join channels. The bearer of `http.token` may always follow topics.
    pub channels_only: bool,
    /// Most connections.
    pub max_connections: usize,
    /// Most connections of one address. Behind a proxy all clients have its address.
    pub max_per_address: usize,
    /// Most subscriptions of one connection.
    pub max_subscriptions: usize,
    /// Largest message of a client, in bytes.
    pub max_message: usize,
    /// Bytes of the log that are kept in memory for clients.
    pub buffer: usize,
    /// Most keys of a snapshot.
    pub max_snapshot: usize,
    /// Interval between signs of life in both directions. A client that says nothing for two of them is gone.
    pub heartbeat: Duration,
    /// A client that reads more slowly than this is closed: a message is not taken within it, or its events
    /// are so much older than the newest.
    pub max_lag: Duration,
    /// Interval of looking for new events without being told.
    pub poll: Duration,
    /// Where new events come from.
    pub backplane: Backplane,
}

/// Where a gateway gets new events.
#[derive(Debug, Clone, Default)]
pub enum Backplane {
    /// It reads the log.
    #[default]
    Off,
    /// One gateway reads the log for all of them, and they are fed by NATS.
    #[cfg(feature = "nats")]
    Nats(Box<Nats>),
}

impl Settings {
    /// Checks that what feeds gateways can be reached. Changes nothing.
    ///
    /// # Errors
    /// What is wrong.
    #[cfg_attr(
        not(feature = "nats"),
        expect(clippy::unused_async, reason = "a build without the feature nats has nothing to wait for")
    )]
    pub async fn check_backplane(&self) -> Result<(), String> {
        match &self.backplane {
            Backplane::Off => Ok(()),
            #[cfg(feature = "nats")]
            Backplane::Nats(nats) => nats.check().await,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            channels_only: false,
            max_connections: 10_000,
            max_per_address: 2_000,
            max_subscriptions: 32,
            max_message: 16 * 1024,
            buffer: 64 * 1024 * 1024,
            max_snapshot: 10_000,
            heartbeat: Duration::from_secs(25),
            max_lag: Duration::from_secs(300),
            poll: Duration::from_secs(1),
            backplane: Backplane::Off,
        }
    }
}
