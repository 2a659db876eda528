//! `/v1/dead-letters`: deliveries that were given up.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    bulk::{Discarded, Redriven, check, most},
    input::{Body, Params, Segment, Who, check_pattern},
    operators::Operators,
    problem::Problem,
};
use crate::admin::{BulkCount, DeadLetter, DeadLetterFilter, DeadLetterGroup, WholeDeadLetter};

const LIST: &str = "dead letters";

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_list_dead_letters, list_dead_letters);
    routes.add(__path_group_dead_letters, group_dead_letters);
    routes.add(__path_show_dead_letter, show_dead_letter);
    routes.add(__path_redrive_dead_letters, redrive_dead_letters);
    routes.add(__path_discard_dead_letters, discard_dead_letters);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Listing {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern, such as `shop.orders.*`.
    topic: Option<String>,
    /// Only those whose reason, answer or status is LIKE this, such as `5__` or `%certificate%`.
    error_like: Option<String>,
    /// Only those that were given up at this time or later.
    since: Option<DateTime<Utc>>,
    /// Only those that were given up before this time.
    until: Option<DateTime<Utc>>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List dead letters, newest first.
#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters", params(Listing),
    responses((status = 200, description = "A page.", body = Page<DeadLetter>))
)]
async fn list_dead_letters(
    State(api): State<Operators>,
    Params(query): Params<Listing>,
) -> Answer<Page<DeadLetter>> {
    let limit = limit(query.limit)?;
    let after = place(LIST, query.cursor.as_deref())?;
    let Listing { subscription, topic, error_like, since, until, .. } = query;
    check_pattern(topic.as_deref())?;
    let filter = DeadLetterFilter { subscription, topic, error_like, since, until, id: None };
    let mut taken = api.take().await?;
    let rows = taken.list_dead_letters(&filter, after, limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIST, rows, limit, |row: &DeadLetter| (row.died_at, row.id))))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Grouping {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern, such as `shop.orders.*`.
    topic: Option<String>,
    /// Only those whose reason, answer or status is LIKE this, such as `5__` or `%certificate%`.
    error_like: Option<String>,
    /// Only those that were given up at this time or later.
    since: Option<DateTime<Utc>>,
    /// Only those that were given up before this time.
    until: Option<DateTime<Utc>>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
}

/// List one row for each subscription, reason and answer, the largest first. It has one page.
#[utoipa::path(
    get, path = "/v1/dead-letters/groups", tag = "dead letters", params(Grouping),
    responses((status = 200, description = "The groups; `next` is null.", body = Page<DeadLetterGroup>))
)]
async fn group_dead_letters(
    State(api): State<Operators>,
    Params(query): Params<Grouping>,
) -> Answer<Page<DeadLetterGroup>> {
    let limit = limit(query.limit)?;
    let Grouping { subscription, topic, error_like, since, until, .. } = query;
    check_pattern(topic.as_deref())?;
    let filter = DeadLetterFilter { subscription, topic, error_like, since, until, id: None };
    let mut taken = api.take().await?;
    let items = taken.group_dead_letters(&filter, limit).await;
    let items = taken.done(items).await?;
    Ok(Json::ok(Page { items, next: None }))
}

/// Show a dead letter with its event.
#[utoipa::path(
    get, path = "/v1/dead-letters/{id}", tag = "dead letters",
    params(("id" = i64, Path, description = "Id of the dead letter.")),
    responses((status = 200, description = "The dead letter.", body = WholeDeadLetter))
)]
async fn show_dead_letter(
    State(api): State<Operators>,
    Segment(id): Segment<i64>,
) -> Answer<WholeDeadLetter> {
    let mut taken = api.take().await?;
    let letter = taken.show_dead_letter(id).await;
    taken.done(letter).await?.map(Json::ok).ok_or_else(|| Problem::no_such("dead letter", id))
}

/// Which dead letters are redriven or discarded.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Choice {
    /// Only those of this subscription.
    subscription: Option<String>,
    /// Only those whose topic matches this pattern.
    topic: Option<String>,
    /// Only those whose reason, answer or status is LIKE this.
    error_like: Option<String>,
    /// Only those that were given up at this time or later.
    since: Option<DateTime<Utc>>,
    /// Only those that were given up before this time.
    until: Option<DateTime<Utc>>,
    /// Only the one with this id.
    id: Option<i64>,
    /// All of them; needed where there is no filter.
    #[serde(default)]
    all: bool,
    /// At most so many, the oldest first: 1 to 100000; 1000 if it is not there.
    limit: Option<i32>,
    /// Only count them.
    #[serde(default)]
    dry_run: bool,
}

impl Choice {
    /// The filter, and how many at most.
    fn checked(self) -> Result<(DeadLetterFilter, i32, bool), Problem> {
        let Self { subscription, topic, error_like, since, until, id, all, limit, dry_run } = self;
        let filter = DeadLetterFilter { subscription, topic, error_like, since, id, until };
        check(filter != DeadLetterFilter::default(), all, dry_run)?;
        check_pattern(filter.topic.as_deref())?;
        Ok((filter, most(limit)?, dry_run))
    }
}

/// Retry dead letters, oldest first, with the attempt count reset.
#[utoipa::path(
    post, path = "/v1/dead-letters/redrive", tag = "dead letters", request_body = Choice,
    responses((status = 200, description = "How many.", body = Redriven))
)]
async fn redrive_dead_letters(
    State(api): State<Operators>,
    who: Who,
    Body(choice): Body<Choice>,
) -> Answer<BulkCount> {
    let (filter, most, dry_run) = choice.checked()?;
    let mut taken = api.take_to_change(who).await?;
    let counted = taken.redrive_in_bulk(&filter, most, dry_run).await;
    Ok(Json::ok(taken.done(counted).await?))
}

/// Delete dead letters permanently, oldest first.
#[utoipa::path(
    post, path = "/v1/dead-letters/discard", tag = "dead letters", request_body = Choice,
    responses((status = 200, description = "How many.", body = Discarded))
)]
async fn discard_dead_letters(
    State(api): State<Operators>,
    who: Who,
    Body(choice): Body<Choice>,
) -> Answer<BulkCount> {
    let (filter, most, dry_run) = choice.checked()?;
    let mut taken = api.take_to_change(who).await?;
    let counted = taken.discard_in_bulk(&filter, most, dry_run).await;
    Ok(Json::ok(taken.done(counted).await?))
}
