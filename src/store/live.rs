//! What live clients need besides the log: channels, the newest event of each key, and what was removed.

use chrono::{DateTime, Utc};
use sqlx::{FromRow as _, Row as _};

use super::{
    SubscriptionRow,
    connection::Store,
    error::Error,
    events::{NewEvent, read_new_events},
    log::UPKEEP,
    statement::first,
};
use crate::{delivery::SubscriptionId, event::Position};

/// All channels at one generation.
#[derive(Debug)]
pub struct Channels {
    /// Channels, in the order of their ids; also those that are paused or invalid.
    pub rows: Vec<SubscriptionRow>,
    /// Ids of channels that cannot be read, and why. The triggers of the table refuse such rows.
    pub unreadable: Vec<(SubscriptionId, String)>,
    /// Value of `outbox.generation` at which they were read. It grows with every committed change of a
    /// subscription; reading events returns it, too.
    pub generation: i64,
}

/// What was removed of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forgotten {
    /// Highest transaction id of a removed event, as text; none: nothing that this cluster wrote.
    pub xid: Option<String>,
    /// Newest time of a removed event.
    pub created_at: DateTime<Utc>,
    /// Highest position of a removed event.
    pub position: Position,
}

/// The newest event of which keys.
#[derive(Debug, Clone, Copy)]
pub struct Latest<'w> {
    /// Patterns of topics.
    pub topics: &'w [String],
    /// Only events of this organization; none: of all.
    pub organization: Option<&'w str>,
    /// Only keys that begin with one of these; none: every key.
    pub keys: Option<&'w [String]>,
    /// Keys at most.
    pub most_keys: i64,
    /// Events of the log that may be looked at.
    pub most_events: i64,
    /// Patterns of which one must match the topic, too; none: any topic will do.
    pub allowed: Option<&'w [String]>,
}

/// The newest event of each key, and the state of the log that they are of.
#[derive(Debug)]
pub struct Snapshot {
    /// The events in the order of positions. A payload of more than 16 KiB was not read with its event.
    pub events: Result<Vec<NewEvent>, TooMuch>,
    /// The snapshot (`pg_snapshot` as text) that the events were read in. What is not visible in it comes
    /// after them.
    pub snapshot: String,
    /// Events of transactions with a higher id than `low_xid` have higher positions than this.
    pub low: Position,
    /// A transaction id, as text.
    pub low_xid: String,
}

/// Why the newest events were not returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooMuch {
    /// There are more keys than may be returned.
    Keys,
    /// The log has more events than may be looked at.
    Events,
}

impl Store {
    /// Reads all channels: the subscriptions with the sink `live`. To be called again when the generation has
    /// grown; event types, which a channel with a `schema_version` needs, are loaded as relays do.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_channels(&self) -> Result<Channels, Error> {
        self.statement("loading channels", sql!("relay/load_channels"))
            .on(UPKEEP)
            .all(|rows| {
                let generation = first(rows)?.try_get("generation")?;
                let mut channels = Channels { rows: Vec::new(), unreadable: Vec::new(), generation };
                for row in rows {
                    let Some(id) = row.try_get("id")? else { continue };
                    match SubscriptionRow::from_row(row) {
                        Ok(row) => channels.rows.push(row),
                        Err(error) => channels.unreadable.push((id, error.to_string())),
                    }
                }
                Ok(channels)
            })
            .await
    }

    /// What was removed of the log by deletes, truncates and dropped partitions; none: nothing. To be read
    /// after the events that somebody may have missed, or with a newer snapshot.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn forgotten(&self) -> Result<Option<Forgotten>, Error> {
        self.statement("reading what was removed of the log", sql!("relay/forgotten"))
            .all(|rows| {
                let read = |row: &sqlx::postgres::PgRow| {
                    Ok(Forgotten {
                        xid: row.try_get("xid")?,
                        created_at: row.try_get("created_at")?,
                        position: row.try_get("position")?,
                    })
                };
                rows.first().map(read).transpose()
            })
            .await
    }

    /// Reads the newest event of each key and organization among those that match, as `outbox.latest` does.
    /// It reads the log, so it takes seconds for millions of events.
    ///
    /// # Errors
    /// Those of the database: also that it took too long, or that an event cannot be read.
    pub async fn latest(&self, wanted: Latest<'_>) -> Result<Snapshot, Error> {
        self.statement("reading the newest event of each key", sql!("relay/latest"))
            .bind(wanted.topics)
            .bind(wanted.organization)
            .bind(wanted.keys)
            .bind(wanted.most_keys)
            .bind(wanted.most_events)
            .bind(wanted.allowed)
            .all(|rows| {
                let row = first(rows)?;
                let events = match (row.try_get("is_too_large")?, row.try_get("has_more")?) {
                    (true, _) => Err(TooMuch::Events),
                    (false, true) => Err(TooMuch::Keys),
                    (false, false) => Ok(read_new_events(rows)?),
                };
                let (snapshot, low) = (row.try_get("snapshot")?, row.try_get("low")?);
                Ok(Snapshot { events, snapshot, low, low_xid: row.try_get("low_xid")? })
            })
            .await
    }
}
