//! Reading the routing table, and the few columns of it that relays write.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, Row as _};

use super::{
    connection::{Slot, Store},
    error::Error,
};
/// Whether relays can and may serve a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SubscriptionState {
    /// They can.
    Ok,
    /// No relay can use it as it is written; new events wait.
    Invalid,
    /// Its destination answered 410.
    Gone,
    /// It was switched off after failing for long.
    Disabled,
}

impl SubscriptionState {
    /// As it is stored.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
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

/// A row of `outbox.subscriptions` as the database holds it.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct SubscriptionRow {
    /// Its number.
    pub id: i64,
    /// Its name: what people call it.
    pub name: String,
    /// Topic patterns.
    pub topics: Vec<String>,
    /// Kind of sink.
    pub sink: String,
    /// For the sink.
    pub config: serde_json::Value,
    /// What the payload must contain, as JSON; null: anything.
    #[sqlx(rename = "match")]
    pub matching: Option<String>,
    /// CEL; null: no further condition.
    pub filter: Option<String>,
    /// CEL; null: the payload is sent as it is.
    pub transform: Option<String>,
    /// The version payloads are brought to; null: as they are.
    pub schema_version: Option<i32>,
    /// Null: every organization.
    pub organization: Option<String>,
    /// Prefixes of keys; null: every key.
    pub keys: Option<Vec<String>>,
    /// Retry policy.
    pub retry: serde_json::Value,
    /// At most so many deliveries in flight per relay.
    pub max_in_flight: Option<i32>,
    /// False: paused by an operator.
    pub active: bool,
    /// Whether relays can and may serve it.
    pub state: SubscriptionState,
    /// Why, when it is not `ok`.
    pub state_reason: Option<String>,
    /// It wants events from before it was made, and has not all of them yet.
    pub starting: bool,
    /// The destination asked for a pause until then.
    pub paused_until: Option<DateTime<Utc>>,
}

impl SubscriptionRow {
    /// As `outbox.subscribe` makes it of the four arguments that are always given, before it has a number.
    #[must_use]
    pub fn new(name: &str, topics: &[&str], sink: &str, config: serde_json::Value) -> Self {
        Self {
            id: 0,
            name: name.to_owned(),
            topics: topics.iter().map(|&topic| topic.to_owned()).collect(),
            sink: sink.to_owned(),
            config,
            matching: None,
            filter: None,
            transform: None,
            schema_version: None,
            organization: None,
            keys: None,
            retry: serde_json::json!({}),
            max_in_flight: None,
            active: true,
            state: SubscriptionState::Ok,
            state_reason: None,
            starting: false,
            paused_until: None,
        }
    }
}

/// What changed since the last load.
#[derive(Debug)]
pub struct Loaded {
    /// Changed rows.
    pub rows: Vec<SubscriptionRow>,
    /// Changed rows that cannot be read, which no trigger would let in: their ids, and why.
    pub unreadable: Vec<(i64, String)>,
    /// The ids of all rows.
    pub ids: Vec<i64>,
    /// The generation they belong to.
    pub generation: i64,
    /// To be given to the next load.
    pub snapshot: String,
}

impl Store {
    /// Reads the subscriptions that changed since a snapshot.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_subscriptions(&self, since: Option<&str>) -> Result<Loaded, Error> {
        self.limited("loading subscriptions", async {
            let mut session = self.session(Slot::Rest).await?;
            let rows = sqlx::query(sql!("relay/load_subscriptions"))
                .bind(since)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut loaded = Loaded {
                rows: Vec::new(),
                unreadable: Vec::new(),
                ids: first.try_get("ids")?,
                generation: first.try_get("generation")?,
                snapshot: first.try_get("snapshot")?,
            };
            for row in &rows {
                let Some(id) = row.try_get("id")? else { continue };
                match SubscriptionRow::from_row(row) {
                    Ok(row) => loaded.rows.push(row),
                    // It must not keep all the others from being loaded.
                    Err(error) => loaded.unreadable.push((id, error.to_string())),
                }
            }
            Ok(loaded)
        })
        .await
    }

    /// The number that moves with every committed change of a subscription.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_generation(&self) -> Result<i64, Error> {
        self.limited("reading the generation of subscriptions", async {
            let mut session = self.session(Slot::Rest).await?;
            let generation = sqlx::query_scalar(sql!("relay/read_generation"))
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(generation)
        })
        .await
    }

    /// Records the state of a subscription if it is still in state `from`. Returns whether it was recorded.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn set_subscription_state(
        &self,
        id: i64,
        from: SubscriptionState,
        state: SubscriptionState,
        reason: Option<&str>,
    ) -> Result<bool, Error> {
        self.limited("recording the state of a subscription", async {
            let mut session = self.session(Slot::Rest).await?;
            let row = sqlx::query(sql!("relay/set_subscription_state"))
                .bind(id)
                .bind(state.code())
                .bind(reason)
                .bind(from.code())
                .persistent(self.is_persistent())
                .fetch_optional(session.connection())
                .await?;
            session.finish().await?;
            Ok(row.is_some())
        })
        .await
    }

    /// Makes the subscription of a handler of this program, or follows its topics. Returns its id.
    ///
    /// # Errors
    /// Those of the database: the topics are refused, or the name is that of another kind of subscription.
    pub async fn declare_handler(&self, name: &str, topics: &[String]) -> Result<i64, Error> {
        self.limited("declaring a handler", async {
            let mut session = self.session(Slot::Rest).await?;
            let id = sqlx::query_scalar(sql!("relay/declare_handler"))
                .bind(name)
                .bind(topics)
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(id)
        })
        .await
    }

    /// Makes all relays wait before they send to these subscriptions again. Returns those for which this changed something.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn postpone_subscriptions(&self, pauses: &[(i64, Duration)]) -> Result<Vec<i64>, Error> {
        self.limited("pausing subscriptions", async {
            let mut session = self.session(Slot::Rest).await?;
            let ids = sqlx::query_scalar(sql!("relay/postpone_subscription"))
                .bind(pauses.iter().map(|pause| pause.0).collect::<Vec<_>>())
                .bind(pauses.iter().map(|pause| pause.1.as_secs_f64()).collect::<Vec<_>>())
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            Ok(ids)
        })
        .await
    }
}
