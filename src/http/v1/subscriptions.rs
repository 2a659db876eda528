//! `/v1/subscriptions`: who wants what.

use std::collections::BTreeMap;

use axum::extract::State;
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    input::{Body, Params, Segment, Who, parsed},
    operators::Operators,
    problem::{Kind, Problem},
};
use crate::{
    admin::{Changed, Created, ShownSubscription, SubscriptionSpec, check_specs},
    event::JsonText,
    store::SubscriptionRow,
};

const LIST: &str = "subscriptions";

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_subscriptions, list_subscriptions);
    routes.add(__path_create_subscription, create_subscription);
    routes.add(__path_show_subscription, show_subscription);
    routes.add(__path_declare_subscription, declare_subscription);
    routes.add(__path_delete_subscription, delete_subscription);
    routes.add(__path_pause_subscription, pause_subscription);
    routes.add(__path_resume_subscription, resume_subscription);
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

/// List subscriptions, by name.
#[utoipa::path(
    get, path = "/v1/subscriptions", tag = "subscriptions", params(Listing),
    responses((status = 200, description = "A page.", body = Page<ShownSubscription>))
)]
async fn list_subscriptions(
    State(api): State<Operators>,
    Params(query): Params<Listing>,
) -> Answer<Page<ShownSubscription>> {
    let limit = limit(query.limit)?;
    let after: Option<String> = place(LIST, query.cursor.as_deref())?;
    let mut taken = api.take().await?;
    let rows = taken.page_subscriptions(after.as_deref(), limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIST, rows, limit, |row: &SubscriptionRow| row.name.clone())))
}

/// Create a subscription; one of this name is not changed.
#[utoipa::path(
    post, path = "/v1/subscriptions", tag = "subscriptions", request_body = SubscriptionSpec,
    responses((status = 201, description = "It was created.", body = Created))
)]
async fn create_subscription(
    State(api): State<Operators>,
    who: Who,
    Body(spec): Body<SubscriptionSpec>,
) -> Answer<Created> {
    check_specs(std::slice::from_ref(&spec)).map_err(|error| Problem::invalid(&error.problem))?;
    let mut taken = api.take_for(who).await?;
    let made = taken.create_subscription(&spec).await;
    let Some(id) = taken.done(made).await? else {
        let why = format!("there is a subscription {} already", spec.name);
        return Err(Problem::new(Kind::Conflict, why).field("name").hint("PUT changes it"));
    };
    Ok(Json::created(path(&spec.name), Created { id, subscription: spec.name }))
}

/// Show a subscription.
#[utoipa::path(
    get, path = "/v1/subscriptions/{name}", tag = "subscriptions",
    params(("name" = String, Path, description = "Name of the subscription.")),
    responses((status = 200, description = "The subscription.", body = ShownSubscription))
)]
async fn show_subscription(
    State(api): State<Operators>,
    Segment(name): Segment<String>,
) -> Answer<ShownSubscription> {
    let mut taken = api.take().await?;
    let rows = taken.list_subscriptions(Some(&name)).await;
    let row = taken.done(rows).await?.pop().ok_or_else(|| Problem::no_such("subscription", &name))?;
    Ok(Json::ok(row.into()))
}

/// Create a subscription or change it to be as the body says, as `outbox.subscribe` does.
///
/// A field that is not there gets its default. `name` may be left out.
#[utoipa::path(
    put, path = "/v1/subscriptions/{name}", tag = "subscriptions", request_body = SubscriptionSpec,
    params(("name" = String, Path, description = "Name of the subscription.")),
    responses(
        (status = 200, description = "It was there, and is now so.", body = ShownSubscription),
        (status = 201, description = "It was created.", body = ShownSubscription),
    )
)]
async fn declare_subscription(
    State(api): State<Operators>,
    Segment(name): Segment<String>,
    who: Who,
    Body(fields): Body<BTreeMap<String, JsonText>>,
) -> Answer<ShownSubscription> {
    let spec = named(&name, fields)?;
    let mut taken = api.take_to_change(who).await?;
    let declared = async {
        let was_there = !taken.list_subscriptions(Some(&name)).await?.is_empty();
        taken.subscribe(&spec).await?;
        Ok((was_there, taken.list_subscriptions(Some(&name)).await?.pop()))
    }
    .await;
    let (was_there, row) = taken.done(declared).await?;
    let row = row.ok_or_else(|| Problem::no_such("subscription", &name))?;
    Ok(if was_there { Json::ok(row.into()) } else { Json::created(path(&name), row.into()) })
}

/// The subscription that a body declares at the path with this name.
fn named(name: &str, mut fields: BTreeMap<String, JsonText>) -> Result<SubscriptionSpec, Problem> {
    let own = JsonText::from(serde_json::json!(name));
    if fields.insert("name".to_owned(), own.clone()).is_some_and(|given| given != own) {
        return Err(Problem::invalid("name: must be that of the path"));
    }
    let text = serde_json::to_vec(&fields)
        .map_err(|error| Problem::new(Kind::BadRequest, format!("body: {error}")))?;
    let spec: SubscriptionSpec = parsed(&text)?;
    check_specs(std::slice::from_ref(&spec)).map_err(|error| Problem::invalid(&error.problem))?;
    Ok(spec)
}

/// Delete a subscription with its pending deliveries; dead letters stay.
#[utoipa::path(
    delete, path = "/v1/subscriptions/{name}", tag = "subscriptions",
    params(("name" = String, Path, description = "Name of the subscription.")),
    responses((status = 200, description = "It was deleted.", body = Changed))
)]
async fn delete_subscription(
    State(api): State<Operators>,
    Segment(name): Segment<String>,
    who: Who,
) -> Answer<Changed> {
    let mut taken = api.take_to_change(who).await?;
    let removed = taken.remove_subscription(&name).await;
    if !taken.done(removed).await? {
        return Err(Problem::no_such("subscription", &name));
    }
    Ok(Json::ok(Changed { subscription: name, changed: true }))
}

/// Stop sending; new deliveries are still recorded.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/pause", tag = "subscriptions",
    params(("name" = String, Path, description = "Name of the subscription.")),
    responses((status = 200, description = "It is paused.", body = Changed))
)]
async fn pause_subscription(
    State(api): State<Operators>,
    Segment(name): Segment<String>,
    who: Who,
) -> Answer<Changed> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.pause_subscription(&name).await;
    let changed = taken.done(changed).await.map_err(Problem::or_not_found)?;
    Ok(Json::ok(Changed { subscription: name, changed }))
}

/// Send again after a pause, a 410 of the destination, or disabling.
#[utoipa::path(
    post, path = "/v1/subscriptions/{name}/resume", tag = "subscriptions",
    params(("name" = String, Path, description = "Name of the subscription.")),
    responses((status = 200, description = "It is resumed.", body = Changed))
)]
async fn resume_subscription(
    State(api): State<Operators>,
    Segment(name): Segment<String>,
    who: Who,
) -> Answer<Changed> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.resume_subscription(&name).await;
    let changed = taken.done(changed).await.map_err(Problem::or_not_found)?;
    Ok(Json::ok(Changed { subscription: name, changed }))
}

/// The path of a subscription.
fn path(name: &str) -> String {
    let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
    format!("/v1/subscriptions/{name}")
}
