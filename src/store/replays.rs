//! Rows of `outbox.replays`: events that a subscription is sent again. The log is read part by part, and what
//! is queued of a part is written in the commit that moves on behind it.

use chrono::{DateTime, Utc};
use sqlx::FromRow;

use super::{
    connection::Store,
    error::Error,
    events::NewEvent,
    starts::{Past, Start},
    statement::by_name,
};
use crate::delivery::ReplayId;

/// A running replay, and how far it has got.
#[derive(Debug, Clone, Default, FromRow)]
pub struct Replay {
    /// Replay id.
    pub id: ReplayId,
    /// Which events it reads, and up to which position it has.
    #[sqlx(flatten)]
    pub span: Start,
    /// Time before which its events were published; none: any.
    pub before: Option<DateTime<Utc>>,
    /// Pattern of the topics of its events.
    pub topic: Option<String>,
    /// Seconds between two deliveries; none: as fast as they are delivered.
    pub gap: Option<f64>,
    /// With a rate: seconds until the next delivery may be due, negative when it is late. None before the
    /// first.
    pub ahead: Option<f64>,
    /// Outstanding deliveries that no attempt has failed for.
    pub fresh: i64,
    /// All outstanding deliveries, as far as they were counted.
    pub counted: i64,
}

impl Store {
    /// Reads the running replays of all subscriptions. Of each at most `most` outstanding deliveries are
    /// counted.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_replays(&self, most: i64) -> Result<Vec<Replay>, Error> {
        self.statement("loading replays", sql!("relay/load_replays")).bind(most).rows(by_name).await
    }

    /// Queues the wanted events of a part, of which `seen` were looked at, and moves on behind it. Returns
    /// false when another relay was faster, or the replay is no longer running: then nothing was written.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn insert_replayed(
        &self,
        replay: &Replay,
        past: &Past,
        seen: usize,
        wanted: &[&NewEvent],
    ) -> Result<bool, Error> {
        self.statement("queueing a replay", sql!("relay/insert_replayed"))
            .bind(replay.id)
            .bind(replay.span.position)
            .bind(past.reached)
            .bind(i64::try_from(seen).unwrap_or(i64::MAX))
            .bind_each(wanted, |new| new.event.position)
            .bind_each(wanted, |new| new.event.created_at)
            .bind(replay.gap)
            .any()
            .await
    }

    /// Records that a replay is done, if nothing of it is outstanding. Returns whether it is.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn end_replay(&self, replay: &Replay) -> Result<bool, Error> {
        self.statement("ending a replay", sql!("relay/end_replay"))
            .bind(replay.id)
            .bind(replay.span.position)
            .any()
            .await
    }
}
