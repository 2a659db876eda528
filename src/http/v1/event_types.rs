//! `/v1/event-types`: what payloads look like.

use axum::extract::State;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    input::{Body, Params, Segment, Who, check_pattern},
    operators::Operators,
    problem::Problem,
};
use crate::{
    admin::ShownEventType,
    event::{
        JsonText,
        types::{EventType, Row},
    },
};

const LIST: &str = "event types";

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_event_types, list_event_types);
    routes.add(__path_declare_event_type, declare_event_type);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List event types, by topic and version.
#[utoipa::path(
    get, path = "/v1/event-types", tag = "event types", params(Listing),
    responses((status = 200, description = "A page.", body = Page<ShownEventType>))
)]
async fn list_event_types(
    State(api): State<Operators>,
    Params(query): Params<Listing>,
) -> Answer<Page<ShownEventType>> {
    let limit = limit(query.limit)?;
    let after: Option<(String, i32)> = place(LIST, query.cursor.as_deref())?;
    let after = after.as_ref().map(|(topic, version)| (topic.as_str(), *version));
    let mut taken = api.take().await?;
    let rows = taken.list_event_types(after, limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIST, rows, limit, |row: &Row| (row.topic.clone(), row.version))))
}

/// An event type.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewEventType {
    /// JSON Schema; if it is not there, every payload fits.
    #[serde(default = "everything")]
    #[schema(required = false)]
    schema: JsonText,
    /// What happens to a payload that does not fit: `reject` (the default) or `warn`.
    mode: Option<String>,
    /// Free text for people.
    description: Option<String>,
    /// CEL expression that makes the payload of the next version.
    upcast: Option<String>,
}

fn everything() -> JsonText {
    serde_json::json!(true).into()
}

/// Create or change the event type of a topic pattern and version.
#[utoipa::path(
    put, path = "/v1/event-types/{topic}/{version}", tag = "event types", request_body = NewEventType,
    params(
        ("topic" = String, Path, description = "Topic pattern, such as `shop.orders.*`."),
        ("version" = i32, Path, description = "Schema version, from 1."),
    ),
    responses((status = 200, description = "It is so now.", body = ShownEventType))
)]
async fn declare_event_type(
    State(api): State<Operators>,
    Segment((topic, version)): Segment<(String, i32)>,
    who: Who,
    Body(asked): Body<NewEventType>,
) -> Answer<ShownEventType> {
    check_pattern(Some(&topic))?;
    let NewEventType { schema, mode, description, upcast } = asked;
    let mode = mode.unwrap_or_else(|| "reject".to_owned());
    let schema = schema.to_string();
    let mut row = Row { id: 0, topic, version, schema, mode, description, upcast, state_reason: None };
    if let Some(problem) = EventType::read(row.clone()).problem() {
        return Err(Problem::invalid(&problem));
    }
    let mut taken = api.take_to_change(who).await?;
    let id = taken.set_event_type(&row).await;
    row.id = taken.done(id).await?;
    Ok(Json::ok(row.into()))
}
