//! Tries a subscription, or a draft of one, on an event: whether it matches and what would be sent. Sends and
//! changes nothing.

use serde::Serialize;
use serde_json::{Map, Value, value::RawValue};
use std::{sync::Arc, time::SystemTime};
use uuid::Uuid;

use crate::{
    event::{Event, Position, types::Types},
    sink::Outgoing,
    subscription::{Condition, Subscription, Wanted},
};

/// Result of trying a subscription on one event.
#[derive(Debug, Serialize)]
#[non_exhaustive]
pub struct Trial {
    /// Public id of the event.
    pub event_id: Uuid,
    /// Place of the event in the log.
    pub position: Position,
    /// Topic of the event.
    pub topic: String,
    /// Whether it would be delivered.
    pub wanted: bool,
    /// The first condition that does not hold: `organization`, `topics`, `keys`, `match` or `filter`.
    pub condition: Option<String>,
    /// The part of the filter that does not hold.
    pub part: Option<String>,
    /// Why a condition, an event type, the transform or the body failed.
    pub error: Option<String>,
    /// The key that would be sent.
    pub key: Option<String>,
    /// The headers that would be sent.
    pub headers: Option<Box<RawValue>>,
    /// The fields that the transform sets for the sink.
    pub sink: Option<Map<String, Value>>,
    /// The lines before the body, such as those of an HTTP request with its signature, without secrets.
    pub request: Vec<String>,
    /// The body that would be sent.
    pub body: Option<String>,
}

/// Tries a subscription on an event.
#[must_use]
pub fn try_subscription(subscription: &Subscription, types: &Types, event: Event) -> Trial {
    let wanted = subscription.explain(&event);
    let mut trial = Trial {
        event_id: event.id,
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
        request: Vec::new(),
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
                    Some(Ok(preview)) => {
                        trial.request = preview.head;
                        trial.body = Some(preview.body);
                    }
                    Some(Err(why)) => trial.error = Some(why.into()),
                    // What cannot be sent from here has no body that is known.
                    None if !subscription.is_usable() => {}
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

/// Prepares a first attempt, as a relay does.
fn prepare(subscription: &Subscription, types: &Types, event: Event) -> Result<Outgoing, String> {
    let prepared = types.prepare(&Arc::new(event), subscription.row.schema_version, &mut Vec::new());
    subscription.shape(Outgoing::new(
        prepared.map_err(|refusal| refusal.why)?,
        subscription.name.clone(),
        SystemTime::now().into(),
    ))
}
