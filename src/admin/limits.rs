//! How fast all subscriptions of an organization together are sent to.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;

use super::{
    Error, Operator, ask,
    statement::{rows, value},
};

/// The limit of an organization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct OrganizationLimit {
    /// Name of the organization.
    pub organization: String,
    /// Most deliveries in a time by all relays together, such as `100/s`.
    pub rate: String,
    /// When it was written.
    pub updated_at: DateTime<Utc>,
}

impl Operator {
    /// The organizations that are limited, by name; with `after` those after this name.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_limits(
        &mut self,
        after: Option<&str>,
        max_rows: i32,
    ) -> Result<Vec<OrganizationLimit>, Error> {
        let query = rows(sql!("admin/list_limits")).bind(after).bind(i64::from(max_rows));
        ask("listing the limits of organizations", query.fetch_all(&mut self.connection)).await
    }

    /// Limits an organization; without a rate, removes its limit. Returns whether something changed.
    ///
    /// # Errors
    /// [`Error::Refused`] when the rate is none.
    pub async fn limit_organization(
        &mut self,
        organization: &str,
        rate: Option<&str>,
    ) -> Result<bool, Error> {
        let query = value(sql!("admin/limit_organization")).bind(organization).bind(rate);
        ask("limiting an organization", query.fetch_one(&mut self.connection)).await
    }
}
