//! Where the feed reads new events.

#[cfg(feature = "nats")]
use super::backplane::Follower;

/// The source of a feed.
#[derive(Debug)]
pub(super) enum Source {
    /// The log.
    Log,
    /// A stream with what another process has read.
    #[cfg(feature = "nats")]
    Stream(Follower),
}
