//! `/v1/replays`: events of the log that are sent again.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    input::{Body, Params, Segment, Who, check_pattern},
    operators::{Operators, Taken},
    problem::Problem,
};
use crate::{
    admin::{Error, Replay, ReplayCount, ReplayOrder},
    sink::Registry,
    subscription::Subscription,
};

const LIST: &str = "replays";

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_replays, list_replays);
    routes.add(__path_start_replay, start_replay);
    routes.add(__path_show_replay, show_replay);
    routes.add(__path_pause_replay, pause_replay);
    routes.add(__path_resume_replay, resume_replay);
    routes.add(__path_cancel_replay, cancel_replay);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List replays, newest first.
#[utoipa::path(
    get, path = "/v1/replays", tag = "replays", params(Listing),
    responses((status = 200, description = "A page.", body = Page<Replay>))
)]
async fn list_replays(State(api): State<Operators>, Params(query): Params<Listing>) -> Answer<Page<Replay>> {
    let limit = limit(query.limit)?;
    let before = place(LIST, query.cursor.as_deref())?;
    let mut taken = api.take().await?;
    let rows = taken.list_replays(query.subscription.as_deref(), None, before, limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIST, rows, limit, |row: &Replay| row.id)))
}

/// Which events are sent again, and to whom.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewReplay {
    /// Name of the subscription.
    subscription: String,
    /// Events that were published at this time or later; needed unless `event` is there.
    since: Option<DateTime<Utc>>,
    /// Events that were published before this time; now, if it is not there.
    until: Option<DateTime<Utc>>,
    /// Only events whose topic matches this pattern.
    topic: Option<String>,
    /// Only the event with this id.
    event: Option<Uuid>,
    /// At most so many in a time, such as `50/s`.
    rate: Option<String>,
    /// Only count what would be sent.
    #[serde(default)]
    dry_run: bool,
}

/// Send events of the log again. Relays do the work.
#[utoipa::path(
    post, path = "/v1/replays", tag = "replays", request_body = NewReplay,
    responses(
        (status = 200, description = "Nothing was sent, because of `dry_run`.", body = ReplayCount),
        (status = 201, description = "It was started.", body = Replay),
    )
)]
async fn start_replay(
    State(api): State<Operators>,
    who: Who,
    Body(asked): Body<NewReplay>,
) -> Result<Response, Problem> {
    let NewReplay { subscription, since, until, topic, event, rate, dry_run } = asked;
    check_pattern(topic.as_deref())?;
    if since.is_none() && event.is_none() {
        return Err(Problem::invalid("since: is needed unless there is an event"));
    }
    let order = ReplayOrder { subscription, since, until, topic, event, rate };
    if dry_run {
        let mut taken = api.take().await?;
        let counted = count(&mut taken, &order).await;
        let counted = taken.done(counted).await?;
        let counted = counted.ok_or_else(|| {
            Problem::invalid(&format!("subscription: there is no subscription {}", order.subscription))
        })?;
        return Ok(Json::ok(counted).into_response());
    }
    let mut taken = api.take_to_change(who).await?;
    let started = async {
        let id = taken.start_replay(&order).await?;
        Ok(taken.list_replays(None, Some(id), None, 1).await?.pop())
    }
    .await;
    let replay = taken.done(started).await?.ok_or_else(|| Problem::no_such("replay", "any more"))?;
    Ok(Json::created(format!("/v1/replays/{}", replay.id), replay).into_response())
}

/// What a replay would send; none if there is no such subscription.
async fn count(taken: &mut Taken, order: &ReplayOrder) -> Result<Option<ReplayCount>, Error> {
    let Some(row) = taken.list_subscriptions(Some(&order.subscription)).await?.pop() else { return Ok(None) };
    // Conditions need no sink.
    let (subscription, _) = Subscription::bind(row, &Registry::default());
    taken.count_replay(order, &subscription).await.map(Some)
}

/// Show a replay and how far it is.
#[utoipa::path(
    get, path = "/v1/replays/{id}", tag = "replays",
    params(("id" = i64, Path, description = "Id of the replay.")),
    responses((status = 200, description = "The replay.", body = Replay))
)]
async fn show_replay(State(api): State<Operators>, Segment(id): Segment<i64>) -> Answer<Replay> {
    let mut taken = api.take().await?;
    let rows = taken.list_replays(None, Some(id), None, 1).await;
    taken.done(rows).await?.pop().map(Json::ok).ok_or_else(|| Problem::no_such("replay", id))
}

/// Whether a replay was changed.
#[derive(Debug, Serialize, ToSchema)]
struct ReplayChanged {
    /// Id of the replay.
    replay: i64,
    /// False if its state does not allow it, or it was so already.
    changed: bool,
}

/// Pause a replay; the few deliveries that are queued are still sent.
#[utoipa::path(
    post, path = "/v1/replays/{id}/pause", tag = "replays",
    params(("id" = i64, Path, description = "Id of the replay.")),
    responses((status = 200, description = "Whether it was changed.", body = ReplayChanged))
)]
async fn pause_replay(
    State(api): State<Operators>,
    Segment(id): Segment<i64>,
    who: Who,
) -> Answer<ReplayChanged> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.pause_replay(id).await;
    let changed = taken.done(changed).await.map_err(Problem::or_not_found)?;
    Ok(Json::ok(ReplayChanged { replay: id, changed }))
}

/// Go on with a paused replay.
#[utoipa::path(
    post, path = "/v1/replays/{id}/resume", tag = "replays",
    params(("id" = i64, Path, description = "Id of the replay.")),
    responses((status = 200, description = "Whether it was changed.", body = ReplayChanged))
)]
async fn resume_replay(
    State(api): State<Operators>,
    Segment(id): Segment<i64>,
    who: Who,
) -> Answer<ReplayChanged> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.resume_replay(id).await;
    let changed = taken.done(changed).await.map_err(Problem::or_not_found)?;
    Ok(Json::ok(ReplayChanged { replay: id, changed }))
}

/// End a replay: what waits of it is never sent.
#[utoipa::path(
    post, path = "/v1/replays/{id}/cancel", tag = "replays",
    params(("id" = i64, Path, description = "Id of the replay.")),
    responses((status = 200, description = "Whether it was changed.", body = ReplayChanged))
)]
async fn cancel_replay(
    State(api): State<Operators>,
    Segment(id): Segment<i64>,
    who: Who,
) -> Answer<ReplayChanged> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.cancel_replay(id).await;
    let changed = taken.done(changed).await.map_err(Problem::or_not_found)?;
    Ok(Json::ok(ReplayChanged { replay: id, changed }))
}
