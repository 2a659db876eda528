//! Reading the routing table, and the few columns of it that relays write.

use std::time::Duration;

use sqlx::{FromRow, Row as _};

use super::{
    connection::{Lane, Store},
    error::Error,
};
use crate::subscription::Row;

/// What changed since the last load.
#[derive(Debug)]
pub struct Loaded {
    /// Changed rows.
    pub rows: Vec<Row>,
    /// Changed rows that cannot be read, which no trigger would let in: their ids, and why.
    pub unreadable: Vec<(i64, String)>,
    /// The ids of all rows.
    pub ids: Vec<i64>,
    /// The generation they belong to.
    pub generation: i64,
    /// To be given to the next load.
    pub snapshot: String,
}

impl Store {
    /// Reads the subscriptions that changed since a snapshot.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn load_subscriptions(&self, since: Option<&str>) -> Result<Loaded, Error> {
        self.limited("loading subscriptions", async {
            let mut session = self.session(Lane::Rest).await?;
            let rows = sqlx::query(include_str!("../../sql/load_subscriptions.sql"))
                .bind(since)
                .persistent(self.is_persistent())
                .fetch_all(session.connection())
                .await?;
            session.finish().await?;
            let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
            let mut loaded = Loaded {
                rows: Vec::new(),
                unreadable: Vec::new(),
                ids: first.try_get("ids")?,
                generation: first.try_get("generation")?,
                snapshot: first.try_get("snapshot")?,
            };
            for row in &rows {
                let Some(id) = row.try_get("id")? else { continue };
                match Row::from_row(row) {
                    Ok(row) => loaded.rows.push(row),
                    // It must not keep all the others from being loaded.
                    Err(error) => loaded.unreadable.push((id, error.to_string())),
                }
            }
            Ok(loaded)
        })
        .await
    }

    /// The number that moves with every committed change of a subscription.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn read_generation(&self) -> Result<i64, Error> {
        self.limited("reading the generation of subscriptions", async {
            let mut session = self.session(Lane::Work).await?;
            let generation = sqlx::query_scalar(include_str!("../../sql/read_generation.sql"))
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(generation)
        })
        .await
    }

    /// Records a judgement of a subscription if it is still in state `from`. Returns whether it was recorded.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn set_subscription_state(&self, id: i64, from: &str, state: &str, reason: Option<&str>) -> Result<bool, Error> {
        self.limited("recording the state of a subscription", async {
            let mut session = self.session(Lane::Rest).await?;
            let row = sqlx::query(include_str!("../../sql/set_subscription_state.sql"))
                .bind(id)
                .bind(state)
                .bind(reason)
                .bind(from)
                .persistent(self.is_persistent())
                .fetch_optional(session.connection())
                .await?;
            session.finish().await?;
            Ok(row.is_some())
        })
        .await
    }

    /// Makes the subscription of a handler of this program, or follows its topics. Returns its id.
    ///
    /// # Errors
    /// Those of the database: the topics are refused, or the name is that of another kind of subscription.
    pub async fn declare_handler(&self, name: &str, topics: &[String]) -> Result<i64, Error> {
        self.limited("declaring a handler", async {
            let mut session = self.session(Lane::Rest).await?;
            let id = sqlx::query_scalar(include_str!("../../sql/declare_handler.sql"))
                .bind(name)
                .bind(topics)
                .persistent(self.is_persistent())
                .fetch_one(session.connection())
                .await?;
            session.finish().await?;
            Ok(id)
        })
        .await
    }

    /// Makes all relays wait before they send to a subscription again.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn postpone_subscription(&self, id: i64, pause: Duration) -> Result<bool, Error> {
        self.limited("pausing a subscription", async {
            let mut session = self.session(Lane::Rest).await?;
            let row = sqlx::query(include_str!("../../sql/postpone_subscription.sql"))
                .bind(id)
                .bind(pause.as_secs_f64())
                .persistent(self.is_persistent())
                .fetch_optional(session.connection())
                .await?;
            session.finish().await?;
            Ok(row.is_some())
        })
        .await
    }
}
