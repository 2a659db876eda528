//! Publishes an event.

use serde::Serialize;
use sqlx::Connection as _;
use uuid::Uuid;

use super::{Error, Operator, ask};
use crate::event::Draft;

pub(super) const PUBLISHING: &str = "publishing an event";

/// A published event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Published {
    /// Id of the event.
    pub event_id: Uuid,
}

impl Operator {
    /// Publishes one event and commits it. Returns its id.
    ///
    /// # Errors
    /// [`Error::Refused`] when the topic, a header or the payload is refused.
    pub async fn publish(&mut self, draft: &Draft) -> Result<Uuid, Error> {
        ask(PUBLISHING, async {
            let mut transaction = self.connection.begin().await?;
            let id = draft.statement().persistent(false).fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            Ok(id)
        })
        .await
    }
}
