//! A delivery: one event owed to one subscription, leased to this relay.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::{
    delivery::ReplayId,
    event::{Event, Position},
    subscription::Subscription,
};

/// One event owed to one subscription, leased to this relay.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) position: Position,
    /// Time of the event; before it is read, a time that is not later.
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) content: Content,
    pub(crate) subscription: Arc<Subscription>,
    /// Time from which `retry.max_age` counts, by the database's clock.
    pub(crate) owed_since: DateTime<Utc>,
    /// Start of this attempt, by the database's clock.
    pub(crate) attempted_at: DateTime<Utc>,
    /// Number of this attempt, from 1.
    pub(crate) attempt: u32,
    /// Number of earlier claims that ended without a verdict.
    pub(crate) unfinished: u32,
    /// Replay that it is part of.
    pub(crate) replay: Option<ReplayId>,
    /// Whether an earlier attempt may have reached the destination.
    pub(crate) repeated: bool,
}

/// What this relay has read of the event.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    Unread,
    /// All but its payload, which is large.
    WithoutPayload(Arc<Event>),
    Whole(Arc<Event>),
    /// It was looked for, and is not in the log or cannot be read.
    Missing,
}

impl Content {
    pub(crate) fn new(event: Arc<Event>, payload_read: bool) -> Self {
        if payload_read { Self::Whole(event) } else { Self::WithoutPayload(event) }
    }

    /// Whether nothing more is to be read.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self, Self::Whole(_) | Self::Missing)
    }
}

impl Delivery {
    /// The event, as far as it was read.
    pub(crate) fn event(&self) -> Option<&Arc<Event>> {
        match &self.content {
            Content::Whole(event) | Content::WithoutPayload(event) => Some(event),
            Content::Unread | Content::Missing => None,
        }
    }

    pub(crate) fn event_id(&self) -> Option<Uuid> {
        self.event().map(|event| event.id)
    }
}
