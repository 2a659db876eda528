//! Waiting for an event after its commit, and what each subscription said of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection};
use tokio::time::Instant;
use uuid::Uuid;

use super::statement::rows;
use super::{Error, Operator, ask};

pub(super) const WAITING: &str = "waiting for an event";
/// Longest wait.
const LONGEST: Duration = Duration::from_secs(60 * 60);
/// Length of one call of `outbox.wait`. Each keeps vacuum back and must end before a limit for statements.
const PART: Duration = Duration::from_secs(2);

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventStatus {
    /// Nothing is owed and there is no dead letter: it was delivered to all who wanted it, or nobody did.
    Completed,
    /// Nothing is owed, and there is a dead letter.
    Failed,
    /// The time is over, and something is still owed, or relays have not seen it yet.
    Pending,
}

/// What one subscription said of an event so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, FromRow)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Said {
    /// Name of the subscription.
    pub subscription: String,
    /// Where the delivery stands.
    pub state: SaidState,
    /// When it is tried next; none if it is not waiting for a time.
    pub due_at: Option<DateTime<Utc>>,
    /// Number of attempts that are known.
    pub attempts: i32,
    /// Stable code of why the last known attempt failed.
    pub reason: Option<String>,
    /// HTTP status of the last answer.
    pub status: Option<i32>,
    /// Beginning of the last answer, escaped.
    pub answer: Option<String>,
}

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
#[non_exhaustive]
pub enum SaidState {
    /// It was delivered. Known only where `relay.attempt_log` is `all`.
    Delivered,
    /// It was given up.
    DeadLetter,
    /// A relay holds it.
    InFlight,
    /// It waits for a retry, for later, or for its subscription.
    Waiting,
    /// It was not sent, because a newer event of its key waited (`"coalesce" => 'key'`). Known
    /// where `relay.attempt_log` is not `off`.
    Superseded,
    /// It failed before, and is neither owed nor a dead letter now: delivered, cancelled or discarded.
    Settled,
}

/// The result of [`wait`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema))]
pub struct Waited {
    /// Id of the event.
    pub event_id: Uuid,
    /// What became of it.
    pub status: EventStatus,
    /// What each subscription said, by name. Those to which it was delivered at once are in it only where
    /// `relay.attempt_log` is `all`; a busy relay may record the last attempt a moment later. None: the login
    /// may not read it, because it is no member of `outbox_admin`.
    pub subscriptions: Option<Vec<Said>>,
}

/// Waits after the commit until nothing is owed of an event, at most for `timeout`, which is above 0 and at
/// most an hour. The login needs the rights of `outbox_publisher`; those of `outbox_admin` to be told what
/// each subscription said. Waits in calls of two seconds.
///
/// # Errors
/// [`Error::Refused`] when there is no such event, the transaction that published it is not committed, the
/// connection is in a transaction that is not read committed, or `timeout` is out of range; and those of the
/// database.
pub async fn wait(connection: &mut PgConnection, event: Uuid, timeout: Duration) -> Result<Waited, Error> {
    let began = Instant::now();
    let (status, may_read) = loop {
        let left = timeout.saturating_sub(began.elapsed());
        // The first call has all of a time that is refused; one must not be 0 because it is over.
        let part = match timeout {
            Duration::ZERO => timeout,
            _ if timeout > LONGEST => timeout,
            _ => left.clamp(Duration::from_millis(1), PART),
        };
        let query =
            rows::<(EventStatus, bool)>(sql!("admin/wait_for_event")).bind(event).bind(part.as_secs_f64());
        let (status, may_read) = ask(WAITING, query.fetch_one(&mut *connection)).await?;
        if status != EventStatus::Pending || began.elapsed() >= timeout {
            break (status, may_read);
        }
    };
    let subscriptions = if may_read {
        let query = rows(sql!("admin/list_answers")).bind(event);
        Some(ask("reading what subscriptions said", query.fetch_all(connection)).await?)
    } else {
        None
    };
    Ok(Waited { event_id: event, status, subscriptions })
}

impl Operator {
    /// Waits until nothing is owed of an event; see [`wait`].
    ///
    /// # Errors
    /// Those of [`wait`].
    pub async fn wait_for_event(&mut self, event: Uuid, timeout: Duration) -> Result<Waited, Error> {
        wait(&mut self.connection, event, timeout).await
    }
}
