//! Slots of rates, which relays reserve ahead: `outbox.paces` and `outbox.organization_limits`.

use chrono::{DateTime, Utc};
use sqlx::Row as _;

use super::{connection::Store, error::Error};
use crate::delivery::SubscriptionId;

/// Whose rate it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Paced {
    /// That of a subscription.
    Subscription(SubscriptionId),
    /// That of all subscriptions of an organization together.
    Organization(String),
}

/// Slots that a relay wants.
#[derive(Debug, Clone)]
pub struct SlotsWanted {
    /// Whose rate it is.
    pub of: Paced,
    /// Seconds between two slots.
    pub spacing: f64,
    /// How many at most.
    pub slots: u32,
}

/// Slots that a relay got.
#[derive(Debug, Clone, Copy, Default)]
pub struct SlotsReserved {
    /// When the first slot is, in seconds from the start of the statement; if none was reserved, when the
    /// first is that is free. None: another relay was at it, or there is no such rate.
    pub first: Option<f64>,
    /// Number of slots.
    pub reserved: u32,
    /// The first slot that was free before.
    pub free_before: Option<DateTime<Utc>>,
    /// The first slot that is free now; none if none was reserved.
    pub free_now: Option<DateTime<Utc>>,
}

impl Store {
    /// Reserves slots of rates. Returns what was reserved of each, in their order.
    ///
    /// # Errors
    /// Those of the database. Slots may be reserved nevertheless: they are lost.
    pub async fn reserve_slots(&self, wanted: &[SlotsWanted]) -> Result<Vec<SlotsReserved>, Error> {
        self.statement("reserving slots of rates", sql!("relay/reserve_slots"))
            .bind_each(wanted, |one| match &one.of {
                Paced::Organization(name) => name.as_str(),
                Paced::Subscription(_) => "",
            })
            .bind_each(wanted, |one| match &one.of {
                Paced::Organization(_) => 0,
                Paced::Subscription(id) => id.0,
            })
            .bind_each(wanted, |one| one.spacing)
            .bind_each(wanted, |one| i64::from(one.slots))
            .rows(|row| {
                Ok(SlotsReserved {
                    first: row.try_get("first")?,
                    reserved: u32::try_from(row.try_get::<i64, _>("reserved")?).unwrap_or(0),
                    free_before: row.try_get("free_before")?,
                    free_now: row.try_get("free_now")?,
                })
            })
            .await
    }
}
