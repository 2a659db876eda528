//! Why an event was not delivered: for each subscription what became of it. The conditions are evaluated by
//! the code that routes; `outbox_internal.explain_event` judges the rest from what is recorded.

mod status;

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, types::Json};
use uuid::Uuid;

pub use self::status::{TraceGroup, TraceStatus};
use super::{
    Error, LoggedAttempt, Operator, ask,
    statement::{rows, statement},
};
use crate::{
    event::{Event, Position},
    sink::Registry,
    store::SubscriptionRow,
    subscription::{Condition, Subscription, Wanted},
};

/// Most attempts of one event that are read.
const ATTEMPTS: i64 = 1_000;
const TRACING: &str = "tracing an event";

/// An event and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The event.
    pub event: TracedEvent,
    /// What became of it for each subscription, by name; also for deleted ones that left a record.
    pub subscriptions: Vec<TracedSubscription>,
}

/// The event of a [`Trace`], without its headers and payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct TracedEvent {
    /// Public id of the event: a UUID.
    pub event_id: Uuid,
    /// Place in the log.
    pub position: Position,
    /// Dotted name, such as `shop.orders.create`.
    pub topic: String,
    /// What the event is about, such as the id of an order; none if the publisher gave none.
    pub key: Option<String>,
    /// Tenant that the event belongs to; none for events outside any tenant.
    pub organization: Option<String>,
    /// Name of the application that published it.
    pub source: Option<String>,
    /// User who caused it.
    pub user_id: Option<String>,
    /// Priority from 0 to 1000.
    pub priority: i32,
    /// Time of the insert, by the database's clock.
    pub created_at: DateTime<Utc>,
    /// Earliest delivery.
    pub deliver_after: Option<DateTime<Utc>>,
    /// Id of the transaction that wrote it; none if the log no longer has it and only a dead letter does.
    pub transaction: Option<String>,
    /// Whether a routing step has decided which subscriptions get it.
    pub is_routed: bool,
}

/// What became of an event for one subscription.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct TracedSubscription {
    /// Name of the subscription; none if it was deleted and no dead letter has its name.
    pub subscription: Option<String>,
    /// Public id of the event.
    pub event_id: Uuid,
    /// Number of attempts, as far as it is known.
    pub attempts: i32,
    /// When the last attempt was recorded.
    pub last_attempt_at: Option<DateTime<Utc>>,
    /// The condition that does not hold, the code of the last failure, or the reason of the subscription's
    /// state.
    pub reason: Option<String>,
    /// What became of it.
    pub status: TraceStatus,
    /// What it waits for now.
    pub waits_for: Option<String>,
    /// Until when it waits, if that is known.
    pub until: Option<DateTime<Utc>>,
    /// What else is recorded.
    pub detail: TraceDetail,
    /// Logged attempts, oldest first; failures only, unless `relay.attempt_log` is `all`.
    pub log: Vec<LoggedAttempt>,
}

/// What is recorded about an event and a subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct TraceDetail {
    /// The condition that does not hold now: `organization`, `topics`, `keys`, `match` or `filter`; `failed`
    /// if it could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// The part of the filter that does not hold, or why a condition could not be evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Where it is owed: `delivery`, `page` or `backlog`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
    /// Time since which it is owed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owed_since: Option<DateTime<Utc>>,
    /// Time of the next attempt, or the end of the lease.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due_at: Option<DateTime<Utc>>,
    /// The replay that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<i64>,
    /// The relay that holds it, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<String>,
    /// Relays whose breaker is open for the subscription.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breakers: Vec<String>,
    /// End of the pause that the destination asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<DateTime<Utc>>,
    /// Id of its dead letter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<i64>,
    /// When it was given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub died_at: Option<DateTime<Utc>>,
    /// Whether the dead letter can be sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub is_redrivable: Option<bool>,
    /// HTTP status of the last answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<i32>,
    /// Beginning of the last answer, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// When the attempt log has a successful attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delivered_at: Option<DateTime<Utc>>,
    /// When the subscription was changed after the event was published: other conditions may have held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changed_at: Option<DateTime<Utc>>,
    /// Whether the subscription was deleted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub is_deleted: bool,
}

#[derive(Debug, FromRow)]
struct EventRow {
    id: Uuid,
    position: Position,
    created_at: DateTime<Utc>,
    topic: String,
    key: Option<String>,
    organization: Option<String>,
    source: Option<String>,
    user_id: Option<String>,
    schema_version: Option<i32>,
    headers: String,
    payload: Option<String>,
    priority: i32,
    deliver_after: Option<DateTime<Utc>>,
    transaction: Option<String>,
    is_routed: bool,
}

#[derive(Debug, FromRow)]
struct Explained {
    subscription_id: i64,
    subscription: Option<String>,
    status: TraceStatus,
    reason: Option<String>,
    waits_for: Option<String>,
    until: Option<DateTime<Utc>>,
    attempts: i32,
    last_attempt_at: Option<DateTime<Utc>>,
    #[sqlx(json)]
    detail: TraceDetail,
}

#[derive(Debug, FromRow)]
struct AttemptRow {
    subscription_id: i64,
    #[sqlx(flatten)]
    attempt: LoggedAttempt,
}

impl Operator {
    /// What became of an event, for every subscription or the one with this name; none if neither the log nor
    /// a dead letter has it. All is read in one snapshot.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn trace(&mut self, event: Uuid, subscription: Option<&str>) -> Result<Option<Trace>, Error> {
        let begin = "begin transaction isolation level repeatable read, read only";
        ask(TRACING, statement(begin).execute(&mut self.connection)).await?;
        let traced = self.trace_in_snapshot(event, subscription).await;
        let ended = self.end(traced.is_ok()).await;
        let traced = traced?;
        ended?;
        Ok(traced)
    }

    async fn trace_in_snapshot(
        &mut self,
        id: Uuid,
        subscription: Option<&str>,
    ) -> Result<Option<Trace>, Error> {
        let query = rows::<EventRow>(sql!("admin/trace_event")).bind(id);
        let Some(row) = ask(TRACING, query.fetch_optional(&mut self.connection)).await? else {
            return Ok(None);
        };
        let refusals = refusals(self.list_subscriptions(subscription).await?, &row);
        let query = rows::<Explained>(sql!("admin/explain_event")).bind(id).bind(subscription);
        let query = query.bind(Json(refusals));
        let explained = ask(TRACING, query.fetch_all(&mut self.connection)).await?;
        let query = rows::<AttemptRow>(sql!("admin/trace_attempts")).bind(id).bind(row.position);
        let query = query.bind(row.created_at).bind(subscription).bind(ATTEMPTS);
        let mut logs: HashMap<i64, Vec<LoggedAttempt>> = HashMap::new();
        for made in ask(TRACING, query.fetch_all(&mut self.connection)).await? {
            logs.entry(made.subscription_id).or_default().push(made.attempt);
        }
        let subscriptions = explained.into_iter().map(|one| {
            let log = logs.remove(&one.subscription_id).unwrap_or_default();
            TracedSubscription {
                subscription: one.subscription,
                event_id: id,
                attempts: one.attempts,
                last_attempt_at: one.last_attempt_at,
                reason: one.reason,
                status: one.status,
                waits_for: one.waits_for,
                until: one.until,
                detail: one.detail,
                log,
            }
        });
        Ok(Some(Trace { subscriptions: subscriptions.collect(), event: row.into() }))
    }
}

/// The condition that does not hold and its part, by id of the subscription; those that want the event are
/// left out.
type Refusals = BTreeMap<String, (String, Option<String>)>;

fn refusals(subscriptions: Vec<SubscriptionRow>, row: &EventRow) -> Refusals {
    let event = row.event();
    // Conditions need no sink: those of other programs are not here.
    let sinks = Registry::default();
    let subscriptions = subscriptions.into_iter().map(|one| Subscription::bind(one, &sinks).0);
    let refused =
        subscriptions.filter_map(|one| Some((one.row.id.0, refusal(&one, &event, row.payload.is_some())?)));
    refused.map(|(id, refusal)| (id.to_string(), refusal)).collect()
}

/// The condition that does not hold, and its part.
fn refusal(one: &Subscription, event: &Event, is_readable: bool) -> Option<(String, Option<String>)> {
    if !is_readable && one.needs_payload() && one.wants_plainly(event) {
        return Some(("filter_unknown".to_owned(), None));
    }
    match one.explain(event) {
        Wanted::Yes => None,
        Wanted::Failed(why) => Some(("failed".to_owned(), Some(why))),
        Wanted::No(condition) => {
            let name = condition.to_string();
            Some((name, if let Condition::Filter(part) = condition { Some(part) } else { None }))
        }
    }
}

impl EventRow {
    fn event(&self) -> Event {
        Event {
            id: self.id,
            position: self.position,
            created_at: self.created_at,
            topic: self.topic.clone(),
            key: self.key.clone(),
            payload: self.payload.clone().unwrap_or_else(|| "null".to_owned()),
            headers: self.headers.clone(),
            organization: self.organization.clone(),
            source: self.source.clone(),
            user_id: self.user_id.clone(),
            schema_version: self.schema_version,
        }
    }
}

impl From<EventRow> for TracedEvent {
    fn from(row: EventRow) -> Self {
        Self {
            event_id: row.id,
            position: row.position,
            topic: row.topic,
            key: row.key,
            organization: row.organization,
            source: row.source,
            user_id: row.user_id,
            priority: row.priority,
            created_at: row.created_at,
            deliver_after: row.deliver_after,
            transaction: row.transaction,
            is_routed: row.is_routed,
        }
    }
}
