//! `/v1/deliveries`: deliveries that wait.

use axum::extract::State;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    bulk::{Cancelled, Retried, check, most},
    input::{Body, Params, Who, check_pattern},
    operators::Operators,
};
use crate::admin::{BulkCount, DeliveryFilter, DeliveryPlace, PlacedDelivery, WaitingDelivery};

const LIST: &str = "deliveries";

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_deliveries, list_deliveries);
    routes.add(__path_retry_deliveries, retry_deliveries);
    routes.add(__path_cancel_deliveries, cancel_deliveries);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern, such as `shop.orders.*`.
    topic: Option<String>,
    /// Only those of the event with this id.
    event: Option<Uuid>,
    /// Only those whose last attempt has a reason, answer or status LIKE this, such as `5__`.
    error_like: Option<String>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List deliveries that wait, in the order of the log.
///
/// They wait for a retry, for later, or until their subscription can take them.
#[utoipa::path(
    get, path = "/v1/deliveries", tag = "deliveries", params(Listing),
    responses((status = 200, description = "A page.", body = Page<WaitingDelivery>))
)]
async fn list_deliveries(
    State(api): State<Operators>,
    Params(query): Params<Listing>,
) -> Answer<Page<WaitingDelivery>> {
    let limit = limit(query.limit)?;
    let after: Option<DeliveryPlace> = place(LIST, query.cursor.as_deref())?;
    let Listing { subscription, topic, event, error_like, .. } = query;
    check_pattern(topic.as_deref())?;
    let filter = DeliveryFilter { subscription, topic, event, error_like };
    let mut taken = api.take().await?;
    let rows = taken.page_deliveries(&filter, after, limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIST, rows, limit, |row: &PlacedDelivery| row.place)))
}

impl From<PlacedDelivery> for WaitingDelivery {
    fn from(placed: PlacedDelivery) -> Self {
        placed.delivery
    }
}

/// Which deliveries are sent now.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Retry {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern.
    topic: Option<String>,
    /// Only those of the event with this id.
    event: Option<Uuid>,
    /// Only those whose last attempt has a reason, answer or status LIKE this.
    error_like: Option<String>,
    /// All of them; needed where there is no filter.
    #[serde(default)]
    all: bool,
    /// At most so many: 1 to 100000; 1000 if it is not there.
    limit: Option<i32>,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

/// Send deliveries now that wait, also behind a breaker.
#[utoipa::path(
    post, path = "/v1/deliveries/retry", tag = "deliveries", request_body = Retry,
    responses((status = 200, description = "How many.", body = Retried))
)]
async fn retry_deliveries(
    State(api): State<Operators>,
    who: Who,
    Body(asked): Body<Retry>,
) -> Answer<BulkCount> {
    let Retry { subscription, topic, event, error_like, all, limit, dry_run } = asked;
    let filter = DeliveryFilter { subscription, topic, event, error_like };
    check(filter != DeliveryFilter::default(), all, dry_run)?;
    check_pattern(filter.topic.as_deref())?;
    let most = most(limit)?;
    let mut taken = api.take_to_change(who).await?;
    let counted = taken.retry_in_bulk(&filter, most, dry_run).await;
    Ok(Json::ok(taken.done(counted).await?))
}

/// Which deliveries are never sent.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Cancel {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern.
    topic: Option<String>,
    /// Only those of the event with this id.
    event: Option<Uuid>,
    /// Only those whose last attempt has a reason, answer or status LIKE this.
    error_like: Option<String>,
    /// All of them; needed where there is no filter.
    #[serde(default)]
    all: bool,
    /// At most so many: 1 to 100000; 1000 if it is not there.
    limit: Option<i32>,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
    /// Leave a dead letter for each, which can be redriven.
    #[serde(default)]
    dead_letters: bool,
}

/// Remove deliveries that wait, so that they are never sent.
#[utoipa::path(
    post, path = "/v1/deliveries/cancel", tag = "deliveries", request_body = Cancel,
    responses((status = 200, description = "How many.", body = Cancelled))
)]
async fn cancel_deliveries(
    State(api): State<Operators>,
    who: Who,
    Body(asked): Body<Cancel>,
) -> Answer<BulkCount> {
    let Cancel { subscription, topic, event, error_like, all, limit, dry_run, dead_letters } = asked;
    let filter = DeliveryFilter { subscription, topic, event, error_like };
    check(filter != DeliveryFilter::default(), all, dry_run)?;
    check_pattern(filter.topic.as_deref())?;
    let most = most(limit)?;
    let mut taken = api.take_to_change(who).await?;
    let counted = taken.cancel_in_bulk(&filter, most, dead_letters, dry_run).await;
    Ok(Json::ok(taken.done(counted).await?))
}
