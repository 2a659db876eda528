//! A subscription, or a draft of one, tried on an event: whether it wants it, and what would be sent. Sends and changes nothing.

use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use std::sync::Arc;
use uuid::Uuid;

use crate::{
    event::{Event, types::Types},
    sink::Outgoing,
    subscription::{Condition, Subscription, Wanted},
};

/// What a subscription makes of one event.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Trial {
    /// The event's public id.
    pub event: Uuid,
    /// Its place in the log.
    pub position: i64,
    /// Its topic.
    pub topic: String,
    /// Whether it would be delivered.
    pub wanted: bool,
    /// The first condition that keeps it away: `organization`, `topics`, `keys`, `match` or `filter`.
    pub condition: Option<String>,
    /// The part of the filter that does not hold.
    pub part: Option<String>,
    /// Why a condition, an event type, the transform or the body cannot be evaluated.
    pub error: Option<String>,
    /// The body that would be sent.
    pub body: Option<String>,
    /// The key that would be sent.
    pub key: Option<String>,
    /// The headers that would be sent.
    pub headers: Option<Box<RawValue>>,
    /// What the transform says to the sink.
    pub sink: Option<Map<String, Value>>,
}

/// Tries a subscription on an event, with these event types.
#[must_use]
pub fn try_subscription(subscription: &Subscription, types: &Types, event: Event) -> Trial {
    let wanted = subscription.explain(&event);
    let mut trial = Trial {
        event: event.id,
        position: event.position,
        topic: event.topic.clone(),
        wanted: wanted == Wanted::Yes,
        condition: None,
        part: None,
        error: None,
        body: None,
        key: None,
        headers: None,
        sink: None,
    };
    match wanted {
        Wanted::Failed(why) => trial.error = Some(why),
        Wanted::No(condition) => {
            trial.condition = Some(condition.to_string());
            trial.part = if let Condition::Filter(part) = condition { Some(part) } else { None };
        }
        Wanted::Yes => match prepare(subscription, types, event) {
            Ok(outgoing) => {
                match subscription.outlet.preview(&outgoing) {
                    Some(Ok(body)) => trial.body = Some(body),
                    Some(Err(why)) => trial.error = Some(why.into()),
                    None => trial.body = Some(outgoing.event.payload.clone()),
                }
                trial.key.clone_from(&outgoing.event.key);
                trial.headers = RawValue::from_string(outgoing.event.headers.clone()).ok();
                trial.sink = outgoing.fields.as_deref().cloned();
            }
            Err(why) => trial.error = Some(why),
        },
    }
    trial
}

/// A first attempt, as a relay would make it.
fn prepare(subscription: &Subscription, types: &Types, event: Event) -> Result<Outgoing, String> {
    let created_at = event.created_at;
    let prepared = types.prepare(&Arc::new(event), subscription.row.schema_version, &mut Vec::new());
    subscription.shape(Outgoing::new(
        prepared.map_err(|refusal| refusal.why)?,
        subscription.name.clone(),
        created_at,
    ))
}
