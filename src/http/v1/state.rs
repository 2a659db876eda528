//! `/v1/status`, `/v1/audit` and `/v1/organizations`: how it stands, who changed what, and limits.

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Routes,
    answer::{Answer, Json, Page, limit, page, place},
    input::{Body, Params, Segment, Who},
    operators::Operators,
};
use crate::{
    admin::{AuditEntry, OrganizationLimit, RunningRelay, Status},
    store::LogStatus,
};

const AUDIT: &str = "audit";
const LIMITS: &str = "limits";
/// Most relays in the status.
const RELAYS: usize = 1_000;

pub(super) fn add(routes: &mut Routes) {
    routes.add(__path_show_status, show_status);
    routes.add(__path_list_audit, list_audit);
    routes.add(__path_list_limits, list_limits);
    routes.add(__path_limit_organization, limit_organization);
    routes.add(__path_unlimit_organization, unlimit_organization);
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Shown {
    /// Only this subscription.
    subscription: Option<String>,
    /// Most subscriptions, those with problems first: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
}

/// How the outbox stands.
#[derive(Debug, Serialize, ToSchema)]
struct OutboxStatus {
    /// Why nothing may be sent; null: it may.
    fenced: Option<String>,
    /// Relays that reported within the last minute, by name; at most 1000.
    relays: Vec<RunningRelay>,
    /// How much of the log is not routed yet.
    log: LogStatus,
    /// Captured tables with a problem.
    captures: Vec<CaptureProblem>,
    /// Subscriptions, those with problems first.
    subscriptions: Vec<Status>,
    /// Whether there are more subscriptions.
    more: bool,
}

/// A captured table with a problem.
#[derive(Debug, Serialize, ToSchema)]
struct CaptureProblem {
    /// Name of the table.
    table: String,
    /// What is wrong.
    problem: String,
}

/// Show the state of relays, log and subscriptions.
#[utoipa::path(
    get, path = "/v1/status", tag = "state", params(Shown),
    responses((status = 200, description = "The state.", body = OutboxStatus))
)]
async fn show_status(State(api): State<Operators>, Params(query): Params<Shown>) -> Answer<OutboxStatus> {
    let limit = usize::try_from(limit(query.limit)?).unwrap_or_default();
    let mut taken = api.take().await?;
    let read = async {
        let fenced = taken.fenced(api.environment()).await?;
        let subscriptions = taken.subscription_status().await?;
        let (relays, log) = (taken.list_relays().await?, taken.log_status().await?);
        let captures = taken.capture_problems().await?;
        let captures = captures.into_iter().map(|(table, problem)| CaptureProblem { table, problem });
        let captures = captures.collect();
        Ok(OutboxStatus { fenced, relays, log, captures, subscriptions, more: false })
    }
    .await;
    let mut status = taken.done(read).await?;
    let name = query.subscription.as_ref();
    status.subscriptions.retain(|one| name.is_none_or(|name| one.name == *name));
    status.more = status.subscriptions.len() > limit;
    status.subscriptions.truncate(limit);
    status.relays.truncate(RELAYS);
    Ok(Json::ok(status))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Audit {
    /// Only changes of this subscription.
    subscription: Option<String>,
    /// Only those at this time or later.
    since: Option<DateTime<Utc>>,
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List who changed what, newest first.
#[utoipa::path(
    get, path = "/v1/audit", tag = "state", params(Audit),
    responses((status = 200, description = "A page.", body = Page<AuditEntry>))
)]
async fn list_audit(State(api): State<Operators>, Params(query): Params<Audit>) -> Answer<Page<AuditEntry>> {
    let limit = limit(query.limit)?;
    let before = place(AUDIT, query.cursor.as_deref())?;
    let mut taken = api.take().await?;
    let rows = taken.list_audit(query.subscription.as_deref(), query.since, before, limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(AUDIT, rows, limit, |row: &AuditEntry| row.id)))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Limits {
    /// Most rows: 1 to 1000; 100 if it is not there.
    limit: Option<i32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List the organizations that are limited, by name.
#[utoipa::path(
    get, path = "/v1/organizations/limits", tag = "state", params(Limits),
    responses((status = 200, description = "A page.", body = Page<OrganizationLimit>))
)]
async fn list_limits(
    State(api): State<Operators>,
    Params(query): Params<Limits>,
) -> Answer<Page<OrganizationLimit>> {
    let limit = limit(query.limit)?;
    let after: Option<String> = place(LIMITS, query.cursor.as_deref())?;
    let mut taken = api.take().await?;
    let rows = taken.list_limits(after.as_deref(), limit + 1).await;
    let rows = taken.done(rows).await?;
    Ok(Json::ok(page(LIMITS, rows, limit, |row: &OrganizationLimit| row.organization.clone())))
}

/// How fast all subscriptions of an organization together are sent to.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewLimit {
    /// Most deliveries in a time, such as `100/s`, `600/m` or `1000/h`.
    rate: String,
}

/// Whether the limit of an organization was changed.
#[derive(Debug, Serialize, ToSchema)]
struct LimitChanged {
    /// Name of the organization.
    organization: String,
    /// False if it was so already.
    changed: bool,
}

/// Limit how fast all subscriptions of an organization together are sent to, by all relays.
#[utoipa::path(
    put, path = "/v1/organizations/{organization}/limit", tag = "state", request_body = NewLimit,
    params(("organization" = String, Path, description = "Name of the organization.")),
    responses((status = 200, description = "It is limited.", body = LimitChanged))
)]
async fn limit_organization(
    State(api): State<Operators>,
    Segment(organization): Segment<String>,
    who: Who,
    Body(limit): Body<NewLimit>,
) -> Answer<LimitChanged> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.limit_organization(&organization, Some(&limit.rate)).await;
    let changed = taken.done(changed).await?;
    Ok(Json::ok(LimitChanged { organization, changed }))
}

/// Remove the limit of an organization.
#[utoipa::path(
    delete, path = "/v1/organizations/{organization}/limit", tag = "state",
    params(("organization" = String, Path, description = "Name of the organization.")),
    responses((status = 200, description = "It is not limited.", body = LimitChanged))
)]
async fn unlimit_organization(
    State(api): State<Operators>,
    Segment(organization): Segment<String>,
    who: Who,
) -> Answer<LimitChanged> {
    let mut taken = api.take_to_change(who).await?;
    let changed = taken.limit_organization(&organization, None).await;
    let changed = taken.done(changed).await?;
    Ok(Json::ok(LimitChanged { organization, changed }))
}
