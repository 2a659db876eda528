//! A delivery that this relay holds.

use std::{sync::Arc, time::Instant};

use chrono::{DateTime, Utc};

use super::{
    super::{
        delivery::{Content, Delivery},
        held::{Held, Page, Row},
    },
    gate::{Ordered, Place},
};
use crate::{event::Position, store::Claimed, subscription::Subscription};

/// A delivery that this relay holds and has not settled.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) delivery: Delivery,
    pub(crate) held: Held,
    /// Size of the event in memory (bytes).
    pub(crate) bytes: usize,
    /// When this relay leased it.
    pub(crate) queued: Instant,
    /// True for retries, redrives and priorities, but not in a replay: it begins before deliveries that are
    /// not urgent.
    pub(crate) is_urgent: bool,
    /// Whether its subscription is known to want the event. What was claimed is checked before the attempt.
    pub(crate) is_checked: bool,
    /// Its key, if its subscription is ordered.
    pub(crate) lane: Option<Arc<str>>,
    /// Where it waited.
    pub(crate) place: Place,
    /// What its gate let it do.
    pub(crate) passage: Passage,
}

/// What a gate let a delivery do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It has no gate.
    Free,
    /// It may begin.
    Passed,
    /// It becomes a row that waits for its turn.
    Aside,
    /// It goes back to where it waited.
    Back,
    /// A newer one supersedes it.
    Superseded,
}

impl Ordered for Job {
    fn position(&self) -> Position {
        self.delivery.position
    }

    fn place(&self) -> Place {
        self.place
    }
}

impl Job {
    /// A claimed row before its event is read.
    pub(crate) fn of_row(row: &Claimed, subscription: Arc<Subscription>, held: Arc<Row>) -> Self {
        Self {
            delivery: Delivery {
                position: row.position,
                created_at: row.created_at,
                content: Content::Unread,
                subscription,
                owed_since: row.owed_since,
                attempted_at: row.owed_since,
                attempt: u32::try_from(row.attempt).unwrap_or(u32::MAX),
                unfinished: u32::try_from(row.unfinished).unwrap_or(u32::MAX),
                replay: row.replay_id,
                repeated: row.repeated,
            },
            held: Held::Row(held),
            bytes: 0,
            queued: Instant::now(),
            is_urgent: row.replay_id.is_none(),
            is_checked: false,
            lane: row.key.as_deref().map(Arc::from),
            place: if row.key.is_some() { Place::InOrder } else { Place::Timed },
            passage: Passage::Free,
        }
    }

    /// A claimed pair of a page before its event is read.
    pub(crate) fn of_pair(
        page: &Arc<Page>,
        number: i32,
        position: Position,
        owed_since: DateTime<Utc>,
        subscription: Arc<Subscription>,
    ) -> Self {
        Self {
            delivery: Delivery {
                position,
                created_at: page.span.0,
                content: Content::Unread,
                subscription,
                owed_since,
                attempted_at: owed_since,
                attempt: 1,
                unfinished: 0,
                replay: None,
                repeated: page.deaths > 0,
            },
            held: Held::Page(page.clone(), number),
            bytes: 0,
            queued: Instant::now(),
            is_urgent: page.deaths > 0,
            is_checked: false,
            lane: None,
            place: Place::Backlog,
            passage: Passage::Free,
        }
    }

    /// How many relays may have died because of it.
    pub(crate) fn blame(&self) -> u32 {
        match &self.held {
            Held::Page(page, _) if page.deaths >= 2 => u32::from(page.deaths >= 3) + 1,
            Held::Page(..) => 0,
            Held::Row(_) => self.delivery.unfinished,
        }
    }

    /// Whether a relay died while it held its page.
    pub(crate) fn is_suspect(&self) -> bool {
        matches!(&self.held, Held::Page(page, _) if page.deaths > 0)
    }

    /// Whether it becomes a dead letter without another attempt.
    pub(crate) fn is_deadly(&self) -> bool {
        match &self.held {
            Held::Page(page, _) => page.deaths >= 3 && page.alone >= 2,
            Held::Row(_) => self.delivery.unfinished >= 3,
        }
    }
}
