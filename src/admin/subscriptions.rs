//! Subscriptions: as people and programs are shown them, a page at a time, and changed by them.

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{
    Error, Operator, ask,
    statement::{rows, value},
};
use crate::{delivery::SubscriptionId, event::JsonText, store::SubscriptionRow};

/// The columns of a subscription that are shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct ShownSubscription {
    /// Id of the subscription.
    pub id: SubscriptionId,
    /// Unique name.
    pub name: String,
    /// Topic patterns of the events it receives.
    pub topics: Vec<String>,
    /// Kind of sink.
    pub sink: String,
    /// Target within that sink: an object.
    pub config: JsonText,
    /// JSON that the payload must contain.
    #[cfg_attr(feature = "cli", schema(value_type = JsonText))]
    pub r#match: Option<JsonText>,
    /// CEL expression that an event must satisfy.
    pub filter: Option<String>,
    /// CEL expression that makes the payload to be sent.
    pub transform: Option<String>,
    /// Tenant whose events it receives; null: every organization.
    pub organization: Option<String>,
    /// Schema version that payloads are upcast to.
    pub schema_version: Option<i32>,
    /// Prefixes of the keys it receives; null: every key.
    pub keys: Option<Vec<String>>,
    /// Order of deliveries: `none` or `key`.
    pub ordering: &'static str,
    /// What happens to a key when its event becomes a dead letter: `skip`, `park` or `halt`.
    pub on_exhausted: &'static str,
    /// Whether only the newest waiting event of a key is sent: `none` or `key`.
    pub coalesce: &'static str,
    /// Most deliveries in a time, such as `50/s`.
    pub rate: Option<String>,
    /// Retry policy: an object.
    pub retry: JsonText,
    /// Most deliveries in flight at once in one relay.
    pub max_in_flight: Option<i32>,
    /// False while an operator has paused it.
    pub active: bool,
    /// State: `pending`, `ok`, `invalid`, `gone` or `disabled`.
    pub state: &'static str,
    /// Why the state is not `ok`.
    pub state_reason: Option<String>,
    /// When it was resumed or changed.
    pub resumed_at: Option<DateTime<Utc>>,
}

impl From<SubscriptionRow> for ShownSubscription {
    fn from(row: SubscriptionRow) -> Self {
        Self {
            id: row.id,
            name: row.name,
            topics: row.topics,
            sink: row.sink,
            config: row.config,
            r#match: row.matching,
            filter: row.filter,
            transform: row.transform,
            organization: row.organization,
            schema_version: row.schema_version,
            keys: row.keys,
            ordering: row.ordering.code(),
            on_exhausted: row.on_exhausted.code(),
            coalesce: row.coalesce.code(),
            rate: row.rate,
            retry: row.retry,
            max_in_flight: row.max_in_flight,
            active: row.active,
            state: row.state.code(),
            state_reason: row.state_reason,
            resumed_at: row.resumed_at,
        }
    }
}

/// Whether a command changed something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Changed {
    /// Name of the subscription.
    pub subscription: String,
    /// False if it was so already.
    pub changed: bool,
}

/// A subscription that was created.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Created {
    /// Id of the subscription.
    pub id: i64,
    /// Its name.
    pub subscription: String,
}

impl Operator {
    /// All subscriptions, or the one with this name, by name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_subscriptions(&mut self, name: Option<&str>) -> Result<Vec<SubscriptionRow>, Error> {
        ask(
            "listing subscriptions",
            rows(sql!("admin/list_subscriptions")).bind(name).fetch_all(&mut self.connection),
        )
        .await
    }

    /// Pauses a subscription. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn pause_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "pausing a subscription",
            value(sql!("admin/pause_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Resumes a subscription that is paused, gone or disabled. Returns whether this changed anything.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is no such subscription.
    pub async fn resume_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "resuming a subscription",
            value(sql!("admin/resume_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Creates or changes a subscription. `fields` is an object with the parameters of `outbox.subscribe`.
    ///
    /// # Errors
    /// [`Error::Refused`] names the field; and those of the database.
    pub async fn subscribe(&mut self, fields: &impl serde::Serialize) -> Result<i64, Error> {
        ask(
            "subscribing",
            value(sql!("admin/subscribe")).bind(sqlx::types::Json(fields)).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Deletes a subscription and its pending deliveries; dead letters stay. Returns whether it existed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn remove_subscription(&mut self, name: &str) -> Result<bool, Error> {
        ask(
            "removing a subscription",
            value(sql!("admin/remove_subscription")).bind(name).fetch_one(&mut self.connection),
        )
        .await
    }

    /// Subscriptions by name; with `after` those after this name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn page_subscriptions(
        &mut self,
        after: Option<&str>,
        max_rows: i32,
    ) -> Result<Vec<SubscriptionRow>, Error> {
        let query = rows(sql!("admin/page_subscriptions")).bind(after).bind(i64::from(max_rows));
        ask("listing subscriptions", query.fetch_all(&mut self.connection)).await
    }
}
