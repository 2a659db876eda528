//! `/v1/events`: publish, find, trace, and wait for them; `/v1/attempts`: what was tried.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    Routes,
    answer::{Answer, Json, Page, cursor, limit, page, place},
    input::{EventBody, Params, Segment, check_pattern},
    operators::Operators,
    problem::{Kind, Problem},
};
use crate::{
    admin::{
        AttemptFilter, AttemptPlace, EventFilter, LoggedAttempt, LoggedEvent, Published, TracedEvent,
        TracedSubscription, Waited, WholeEvent,
    },
    delivery::duration,
    event::{Draft, Event, JsonText, Position},
};

const LIST: &str = "events";
const ATTEMPTS: &str = "attempts";
/// Longest wait for an event: the request itself ends after ten seconds.
pub const LONGEST_WAIT: Duration = Duration::from_secs(8);
/// Wait for an event, if the request does not say how long.
const USUAL_WAIT: Duration = Duration::from_secs(5);
/// Most subscriptions in a trace.
pub const TRACED: usize = 1_000;

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_events, list_events);
    routes.add(__path_publish_event, publish_event);
    routes.add(__path_show_event, show_event);
    routes.add(__path_trace_event, trace_event);
    routes.add(__path_wait_for_event, wait_for_event);
    routes.add(__path_list_attempts, list_attempts);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Only events whose topic matches this pattern, such as `shop.orders.*`.
    topic: Option<String>,
    /// Only events with this key.
    key: Option<String>,
    /// Only events of this organization.
    organization: Option<String>,
    /// Only events that were published at this time or later.
    since: Option<DateTime<Utc>>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List events, newest first, without payloads.
///
/// A page looks at 100000 events at most: one that has fewer rows than `limit`, or none, may have a `next`.
#[utoipa::path(
    get, path = "/v1/events", tag = "events", params(Listing),
    responses((status = 200, description = "A page.", body = Page<LoggedEvent>))
)]
async fn list_events(
    State(api): State<Operators>,
    Params(query): Params<Listing>,
) -> Answer<Page<LoggedEvent>> {
    let limit = limit(query.limit)?;
    let before: Option<i64> = place(LIST, query.cursor.as_deref())?;
    let before = before.map(Position);
    let Listing { topic, key, organization, since, .. } = query;
    check_pattern(topic.as_deref())?;
    let filter = EventFilter { topic, key, organization, since };
    let mut taken = api.take().await?;
    let read = async {
        let rows = taken.list_events(&filter, before, limit + 1).await?;
        let is_full = i32::try_from(rows.len()).is_ok_and(|rows| rows > limit);
        // What comes before `since` is not wanted, however far it is away.
        let is_over = rows.is_empty() && filter.since.is_some();
        let skimmed = if is_full || is_over { None } else { taken.skim_events(before).await? };
        Ok((rows, skimmed))
    }
    .await;
    let (rows, skimmed) = taken.done(read).await?;
    let mut page: Page<LoggedEvent> = page(LIST, rows, limit, |row: &LoggedEvent| row.position.0);
    if let (None, Some(last)) = (&page.next, skimmed) {
        page.next = cursor(LIST, &last.0);
    }
    Ok(Json::ok(page))
}

/// An event to publish.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEvent {
    /// Dotted name, such as `shop.orders.create`.
    topic: String,
    /// Any JSON, of at most 256 KiB; if it is not there, an empty object.
    #[serde(default = "empty")]
    #[schema(required = false)]
    payload: JsonText,
    /// What the event is about, such as the id of an order.
    key: Option<String>,
    /// Headers.
    #[serde(default)]
    headers: BTreeMap<String, String>,
    /// Tenant of the event.
    organization: Option<String>,
    /// Id of the event; publishing the same id twice is one event.
    id: Option<Uuid>,
    /// Priority from 0 to 1000; in a backlog each point counts as one minute of waiting.
    #[serde(default)]
    priority: i32,
    /// Earliest delivery.
    deliver_after: Option<DateTime<Utc>>,
    /// Name of the application that publishes it.
    source: Option<String>,
    /// User who caused it.
    user_id: Option<String>,
    /// Version of the payload's schema; none counts as 1.
    schema_version: Option<i32>,
}

fn empty() -> JsonText {
    serde_json::json!({}).into()
}

impl NewEvent {
    fn draft(self) -> Result<Draft, serde_json::Error> {
        let mut draft = Event::new(self.topic, self.payload)?.priority(self.priority);
        if let Some(key) = self.key {
            draft = draft.key(key);
        }
        if let Some(organization) = self.organization {
            draft = draft.organization(organization);
        }
        if let Some(id) = self.id {
            draft = draft.id(id);
        }
        if let Some(instant) = self.deliver_after {
            draft = draft.deliver_after(instant);
        }
        if let Some(source) = self.source {
            draft = draft.source(source);
        }
        if let Some(user) = self.user_id {
            draft = draft.user_id(user);
        }
        if let Some(version) = self.schema_version {
            draft = draft.schema_version(version);
        }
        Ok(self.headers.into_iter().fold(draft, |draft, (name, value)| draft.header(name, value)))
    }
}

/// Publish one event and commit it.
#[utoipa::path(
    post, path = "/v1/events", tag = "events", request_body = NewEvent,
    responses((
        status = 201, description = "It is committed, now or earlier under the same id.", body = Published
    ))
)]
async fn publish_event(
    State(api): State<Operators>,
    EventBody(event): EventBody<NewEvent>,
) -> Answer<Published> {
    let draft = event.draft().map_err(|error| Problem::new(Kind::BadRequest, format!("body: {error}")))?;
    let mut taken = api.take().await?;
    let published = taken.publish(&draft).await;
    let event_id = taken.done(published).await?;
    Ok(Json::created(format!("/v1/events/{event_id}"), Published { event_id }))
}

/// Show an event with its headers and payload.
#[utoipa::path(
    get, path = "/v1/events/{id}", tag = "events",
    params(("id" = Uuid, Path, description = "Id of the event.")),
    responses((status = 200, description = "The event.", body = WholeEvent))
)]
async fn show_event(State(api): State<Operators>, Segment(id): Segment<Uuid>) -> Answer<WholeEvent> {
    let mut taken = api.take().await?;
    let event = taken.show_event(id).await;
    let event = taken.done(event).await?;
    event
        .map(Json::ok)
        .ok_or_else(|| Problem::no_such("event", id).hint("it may have been removed from the log"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Traced {
    /// Only what became of it for this subscription.
    subscription: Option<String>,
}

/// An event and what became of it.
#[derive(Debug, Serialize, ToSchema)]
struct EventTrace {
    /// The event.
    event: TracedEvent,
    /// What became of it for each subscription, by name; at most 1000.
    subscriptions: Vec<TracedSubscription>,
    /// Whether there are more subscriptions.
    more: bool,
}

/// Say why an event was not delivered, or what became of it, for each subscription.
#[utoipa::path(
    get, path = "/v1/events/{id}/trace", tag = "events",
    params(("id" = Uuid, Path, description = "Id of the event."), Traced),
    responses((status = 200, description = "What became of it.", body = EventTrace))
)]
async fn trace_event(
    State(api): State<Operators>,
    Segment(id): Segment<Uuid>,
    Params(query): Params<Traced>,
) -> Answer<EventTrace> {
    let mut taken = api.take().await?;
    let traced = taken.trace(id, query.subscription.as_deref()).await;
    let Some(trace) = taken.done(traced).await? else {
        return Err(Problem::no_such("event", id).hint("neither the log nor a dead letter has it"));
    };
    let (event, mut subscriptions) = (trace.event, trace.subscriptions);
    if let (Some(name), true) = (&query.subscription, subscriptions.is_empty()) {
        return Err(Problem::no_such("subscription", name).field("subscription"));
    }
    let more = subscriptions.len() > TRACED;
    subscriptions.truncate(TRACED);
    Ok(Json::ok(EventTrace { event, subscriptions, more }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Waiting {
    /// Longest wait, such as `500ms` or `5s`; at most 8s, and 5s if it is not there.
    timeout: Option<String>,
}

/// Wait until nothing is owed of an event, or the time is over: `status` is `pending` then.
#[utoipa::path(
    get, path = "/v1/events/{id}/wait", tag = "events",
    params(("id" = Uuid, Path, description = "Id of the event."), Waiting),
    responses((status = 200, description = "How the event stands.", body = Waited))
)]
async fn wait_for_event(
    State(api): State<Operators>,
    Segment(id): Segment<Uuid>,
    Params(query): Params<Waiting>,
) -> Answer<Waited> {
    let timeout = query.timeout.as_deref().map_or(Ok(USUAL_WAIT), |text| wait(text).ok_or(text));
    let timeout = timeout.map_err(|text| {
        let why = format!("timeout: {text:?} is no duration above 0s and up to 8s");
        Problem::new(Kind::BadRequest, why).field("timeout").hint("ask again to wait longer")
    })?;
    let mut taken = api.take_to_wait().await?;
    let waited = taken.wait_for_event(id, timeout).await;
    Ok(Json::ok(taken.done(waited).await.map_err(Problem::or_not_found)?))
}

fn wait(text: &str) -> Option<Duration> {
    duration::parse(text).ok().filter(|wait| !wait.is_zero() && *wait <= LONGEST_WAIT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Attempts {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those of the event with this id.
    event: Option<Uuid>,
    /// Only those whose reason, answer or status is LIKE this, such as `5__` or `%certificate%`.
    error_like: Option<String>,
    /// Only those that were recorded at this time or later.
    since: Option<DateTime<Utc>>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List the attempt log, newest first.
#[utoipa::path(
    get, path = "/v1/attempts", tag = "events", params(Attempts),
    responses((status = 200, description = "A page.", body = Page<LoggedAttempt>))
)]
async fn list_attempts(
    State(api): State<Operators>,
    Params(query): Params<Attempts>,
) -> Answer<Page<LoggedAttempt>> {
    let limit = limit(query.limit)?;
    let after: Option<AttemptPlace> = place(ATTEMPTS, query.cursor.as_deref())?;
    let Attempts { subscription, event, error_like, since, .. } = query;
    let filter = AttemptFilter { subscription, event, error_like, since };
    let mut taken = api.take().await?;
    let rows = taken.list_attempts(&filter, after.as_ref(), limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(ATTEMPTS, rows, limit, |row: &LoggedAttempt| AttemptPlace {
        at: row.at,
        position: row.position,
        attempt: row.attempt,
        subscription: row.subscription.clone(),
    })))
}
