//! Rows of `outbox.subscriptions`, and the few columns of them that relays write.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, Row as _};

use super::{Coalesce, OnExhausted, Ordering, connection::Store, error::Error, statement::first};
use crate::{
    delivery::{LONGEST_PAUSE, SubscriptionId},
    event::{JsonText, Position},
};

/// Whether relays deliver to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SubscriptionState {
    /// No relay has judged it since it was written; they deliver.
    Pending,
    /// A relay can use it: they deliver.
    Ok,
    /// A relay found that it cannot be used as it is written; its events wait.
    Invalid,
    /// Its destination answered 410 Gone; its deliveries are held.
    Gone,
    /// It was disabled because it failed for too long.
    Disabled,
}

impl SubscriptionState {
    /// Whether nobody has found a problem: ok, or not judged yet.
    #[must_use]
    pub const fn has_no_problem(self) -> bool {
        matches!(self, Self::Pending | Self::Ok)
    }

    /// The word that is stored.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Ok => "ok",
            Self::Invalid => "invalid",
            Self::Gone => "gone",
            Self::Disabled => "disabled",
        }
    }
}

impl std::fmt::Display for SubscriptionState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.code())
    }
}

/// A row of `outbox.subscriptions`, not yet checked.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct SubscriptionRow {
    /// Subscription id.
    pub id: SubscriptionId,
    /// Unique name.
    pub name: String,
    /// Topic patterns.
    pub topics: Vec<String>,
    /// Kind of sink.
    pub sink: String,
    /// Target within that sink, such as a URL.
    #[sqlx(json)]
    pub config: JsonText,
    /// JSON that the payload must contain; none: any payload.
    #[sqlx(rename = "match", json(nullable))]
    pub matching: Option<JsonText>,
    /// CEL expression that must be true; none: no further condition.
    pub filter: Option<String>,
    /// CEL expression of the payload that is sent; none: the payload of the event.
    pub transform: Option<String>,
    /// Version of the event type that payloads are converted to; none: not converted.
    pub schema_version: Option<i32>,
    /// Organization whose events it receives; none: events of all organizations.
    pub organization: Option<String>,
    /// Prefixes of the keys it receives; none: every key.
    pub keys: Option<Vec<String>>,
    /// Whether the events of a key keep their order.
    pub ordering: Ordering,
    /// What happens to a key whose event becomes a dead letter.
    pub on_exhausted: OnExhausted,
    /// Whether only the newest of the waiting events of a key is sent.
    pub coalesce: Coalesce,
    /// Most deliveries in a time by all relays together, such as `50/s`; none: no limit.
    pub rate: Option<String>,
    /// Retry policy as JSON.
    #[sqlx(json)]
    pub retry: JsonText,
    /// Largest number of deliveries in flight in one relay; none: the relay's own limit.
    pub max_in_flight: Option<i32>,
    /// False while an operator has paused it.
    pub active: bool,
    /// Whether relays deliver to it.
    pub state: SubscriptionState,
    /// Why its state is not `ok`.
    pub state_reason: Option<String>,
    /// While it is gone: position up to which events are owed to it, because they were committed before.
    pub owed_until: Option<Position>,
    /// Whether it still waits for events from before it was made.
    pub starting: bool,
    /// When it was resumed or changed.
    pub resumed_at: Option<DateTime<Utc>>,
}

impl SubscriptionRow {
    /// Which version of the subscription it is.
    #[must_use]
    pub fn version(&self) -> Version {
        let since = self.resumed_at;
        Version { sink: self.sink.clone(), config: self.config.clone(), since }
    }

    /// The row that `outbox.subscribe` makes of its four required arguments, with id 0.
    #[must_use]
    pub fn new(name: &str, topics: &[&str], sink: &str, config: serde_json::Value) -> Self {
        Self {
            id: SubscriptionId::default(),
            name: name.to_owned(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            sink: sink.to_owned(),
            config: config.into(),
            matching: None,
            filter: None,
            transform: None,
            schema_version: None,
            organization: None,
            keys: None,
            ordering: Ordering::None,
            on_exhausted: OnExhausted::Skip,
            coalesce: Coalesce::None,
            rate: None,
            retry: serde_json::json!({}).into(),
            max_in_flight: None,
            active: true,
            state: SubscriptionState::Pending,
            state_reason: None,
            starting: false,
            owed_until: None,
            resumed_at: None,
        }
    }
}

/// States recorded in one statement.
const STATES_AT_ONCE: usize = 1_000;

/// A new state of a subscription.
#[derive(Debug, Clone)]
pub struct StateChange {
    /// Subscription id.
    pub id: SubscriptionId,
    /// State that it must have now.
    pub from: SubscriptionState,
    /// New state.
    pub to: SubscriptionState,
    /// Why.
    pub reason: Option<String>,
    /// Version that it must be now.
    pub version: Version,
}

/// A version of a subscription, which ends when that is changed or resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Kind of sink.
    pub sink: String,
    /// Config of the sink.
    pub config: JsonText,
    /// When the subscription was last changed or resumed.
    pub since: Option<DateTime<Utc>>,
}

/// A pause that a destination asked for.
#[derive(Debug, Clone)]
pub struct AskedPause {
    /// Subscription id.
    pub id: SubscriptionId,
    /// Its length.
    pub length: Duration,
    /// The version whose destination asked.
    pub version: Version,
}

/// The pauses that destinations asked for and that are not over.
#[derive(Debug)]
pub struct LoadedPauses {
    /// Subscriptions, and what is left of their pauses.
    pub pauses: Vec<(SubscriptionId, Duration)>,
    /// Value of `outbox.generation` at which they were true.
    pub generation: i64,
    /// When the newest was recorded, whether or not it is over.
    pub newest: Option<DateTime<Utc>>,
}

/// The subscriptions that changed since the last load.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Rows that changed, each on its own, so that each leaves memory when it is used.
    pub rows: Vec<Box<SubscriptionRow>>,
    /// Ids of changed rows that cannot be read, and why. The triggers of the table refuse such rows.
    pub unreadable: Vec<(SubscriptionId, String)>,
    /// Ids of all rows, changed or not.
    pub ids: Vec<SubscriptionId>,
    /// Organizations that operators have limited, and their rates.
    pub limits: Vec<(String, String)>,
    /// Value of `outbox.generation` in the snapshot of this load.
    pub generation: i64,
    /// Snapshot of this load, from which the next load starts.
    pub snapshot: String,
}

impl Store {
    /// Reads the subscriptions that changed since a snapshot; without a snapshot, all.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_subscriptions(&self, since: Option<&str>) -> Result<Loaded, Error> {
        let mut loaded = Loaded::default();
        self.statement("loading subscriptions", sql!("relay/load_subscriptions"))
            .bind(since)
            .rows(|row| {
                let Some(id) = row.try_get("id")? else {
                    let limited: Vec<String> = row.try_get("limited")?;
                    loaded.limits =
                        limited.into_iter().zip(row.try_get::<Vec<String>, _>("rates")?).collect();
                    loaded.ids = row.try_get("ids")?;
                    loaded.generation = row.try_get("generation")?;
                    loaded.snapshot = row.try_get("snapshot")?;
                    return Ok(());
                };
                match SubscriptionRow::from_row(row) {
                    Ok(row) => loaded.rows.push(Box::new(row)),
                    // The other subscriptions are loaded nevertheless.
                    Err(error) => loaded.unreadable.push((id, error.to_string())),
                }
                Ok(())
            })
            .await?;
        // Without the first row nothing is known; it does not mean that every subscription is gone.
        if loaded.snapshot.is_empty() {
            return Err(Error::database("loading subscriptions", sqlx::Error::RowNotFound));
        }
        Ok(loaded)
    }

    /// Reads `outbox.generation`, which grows with every committed change of a subscription.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_generation(&self) -> Result<i64, Error> {
        self.statement("reading the generation of subscriptions", sql!("relay/read_generation"))
            .row(|row| row.try_get(0))
            .await
    }

    /// Records states of subscriptions that are still in the state `from`. Returns those that were recorded.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn set_subscription_states(
        &self,
        changes: &[StateChange],
    ) -> Result<HashSet<SubscriptionId>, Error> {
        let mut recorded = HashSet::new();
        for part in changes.chunks(STATES_AT_ONCE) {
            let ids: Vec<SubscriptionId> = self
                .statement("recording states of subscriptions", sql!("relay/set_subscription_states"))
                .bind_each(part, |change| change.id)
                .bind_each(part, |change| change.to.code())
                .bind_each(part, |change| change.reason.as_deref())
                .bind_each(part, |change| change.from.code())
                .bind_each(part, |change| change.version.sink.as_str())
                .bind_each(part, |change| change.version.config.as_str())
                .bind_each(part, |change| change.version.since)
                .rows(|row| row.try_get(0))
                .await?;
            recorded.extend(ids);
        }
        Ok(recorded)
    }

    /// Makes the subscription of a handler of this program, or updates its topics. Returns its id.
    ///
    /// # Errors
    /// Those of the database: the topics are refused, or another kind of subscription has this name.
    pub async fn declare_handler(&self, name: &str, topics: &[String]) -> Result<SubscriptionId, Error> {
        self.statement("declaring a handler", sql!("relay/declare_handler"))
            .bind(name)
            .bind(topics)
            .row(|row| row.try_get(0))
            .await
    }

    /// Lets subscriptions name these sinks. Returns how many of them were new.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn declare_sinks(&self, names: &[&str]) -> Result<i64, Error> {
        self.statement("declaring the sinks of this program", sql!("relay/declare_sinks"))
            .bind(names)
            .row(|row| row.try_get(0))
            .await
    }

    /// Makes all relays wait before they send to these subscriptions again, if they are still the version
    /// whose destination asked for it. Relays are notified on `channel`. Returns the subscriptions whose
    /// pause became longer.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn postpone_subscriptions(
        &self,
        pauses: &[AskedPause],
        channel: &str,
    ) -> Result<Vec<SubscriptionId>, Error> {
        self.statement("pausing subscriptions", sql!("relay/postpone_subscriptions"))
            .bind_each(pauses, |pause| pause.id)
            .bind_each(pauses, |pause| pause.length.as_secs_f64())
            .bind_each(pauses, |pause| pause.version.sink.as_str())
            .bind_each(pauses, |pause| pause.version.config.as_str())
            .bind(channel)
            .bind_each(pauses, |pause| pause.version.since)
            .rows(|row| row.try_get(0))
            .await
    }

    /// Reads the pauses that destinations asked for.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_pauses(&self) -> Result<LoadedPauses, Error> {
        self.statement("loading pauses", sql!("relay/load_pauses"))
            .all(|rows| {
                let row = first(rows)?;
                let (generation, newest) = (row.try_get("generation")?, row.try_get("newest")?);
                let mut pauses = Vec::new();
                for row in rows {
                    let Some(id) = row.try_get("subscription_id")? else { continue };
                    let left = Duration::try_from_secs_f64(row.try_get("seconds")?).unwrap_or(LONGEST_PAUSE);
                    pauses.push((id, left.min(LONGEST_PAUSE)));
                }
                Ok(LoadedPauses { pauses, generation, newest })
            })
            .await
    }
}
