//! Who changed subscriptions, dead letters and waiting deliveries, and when.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;

use super::statement::rows;
use super::{Error, Operator, ask};
use crate::event::JsonText;

/// A change, as `outbox.audit` has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct AuditEntry {
    /// Id of the entry; later ones are larger.
    pub id: i64,
    /// Name of the subscription; none if the change was about none or several.
    pub subscription: Option<String>,
    /// Time of the change, by the database's clock.
    pub at: DateTime<Utc>,
    /// What was done, such as `paused`, `changed` or `redriven`.
    pub action: String,
    /// How many dead letters or deliveries; none where it is about neither.
    pub rows: Option<i64>,
    /// Arguments that were given, or names of the fields that were changed: an object.
    #[sqlx(json)]
    pub details: JsonText,
    /// Login of the session.
    pub login: String,
    /// Role that the session had set, or its login.
    pub role: String,
    /// Name that the program gave itself: `application_name`.
    pub application: String,
    /// Who asked the program for it, as far as it says: the subject of a token of the API.
    pub actor: Option<String>,
}

impl Operator {
    /// Lists changes, newest first: those of one subscription, since a time, and before an id.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_audit(
        &mut self,
        subscription: Option<&str>,
        since: Option<DateTime<Utc>>,
        before: Option<i64>,
        max_rows: i32,
    ) -> Result<Vec<AuditEntry>, Error> {
        let query = rows(sql!("admin/list_audit")).bind(subscription).bind(since);
        let query = query.bind(i64::from(max_rows)).bind(before);
        ask(LISTING_AUDIT, query.fetch_all(&mut self.connection)).await
    }
}

pub(super) const LISTING_AUDIT: &str = "listing changes";
