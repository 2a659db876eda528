//! `subscriptions test`: what a subscription, or a draft of one, makes of events that really were. Sends and changes nothing.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use anyhow::{Context, bail};
use chrono::{DateTime, Utc};
use pgoutbox::{
    Event,
    config::{self, Config},
    delivery::Delivery,
    event_type::{EventType, Types},
    subscription::{Condition, Row, Subscription, Wanted},
};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use uuid::Uuid;

use super::{Misuse, check, print};
use crate::Exit;

/// The longest file with an event, in bytes.
const LONGEST: u64 = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Trial {
    /// The subscription; without it, a draft: a webhook for every topic, unless the options below say otherwise.
    name: Option<String>,
    /// Topic patterns, in place of its own; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    topics: Vec<String>,
    /// What the payload must contain, in place of its own.
    #[arg(long = "match", value_name = "JSON")]
    matching: Option<String>,
    /// A CEL expression, in place of its own.
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// A CEL expression, in place of its own.
    #[arg(long, value_name = "CEL")]
    transform: Option<String>,
    /// An event from a file, as one JSON object: {"topic": …, "payload": …, "key": …}; - reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "last")]
    event: Option<PathBuf>,
    /// So many of the newest events of the log.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    last: i64,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// An event as a person writes it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    topic: String,
    payload: Box<RawValue>,
    key: Option<String>,
    headers: Option<Map<String, Value>>,
    organization: Option<String>,
    source: Option<String>,
    user_id: Option<String>,
    schema_version: Option<i32>,
    id: Option<Uuid>,
    created_at: Option<DateTime<Utc>>,
}

impl Trial {
    pub(super) async fn execute(self, config: impl FnOnce() -> Result<Config, config::Error>) -> anyhow::Result<Exit> {
        // A draft on an event from a file needs neither a database nor a configuration.
        let config = if self.name.is_some() || self.event.is_none() { Some(config()?) } else { None };
        let mut operator = match &config {
            Some(config) => Some(super::connect(config).await?),
            None => None,
        };
        let sinks = match &config {
            Some(config) => check::sinks(config)?,
            // Nothing is connected to: the address only has to be one.
            None => check::sinks(&Config::new("postgres:///".into()))?,
        };
        let row = match (&self.name, &mut operator) {
            (Some(name), Some(operator)) => match operator.list_subscriptions(Some(name)).await?.pop() {
                Some(row) => row,
                None => {
                    eprintln!("pgoutbox: no subscription is named {name:?}; `pgoutbox subscriptions list` lists them");
                    return Ok(Exit::Failed);
                }
            },
            _ => draft(),
        };
        let (subscription, problem) = Subscription::bind(self.over(row), &sinks);
        if let Some(problem) = problem {
            // Without secrets or a way to the destination there is still something to see; without an expression there is not.
            let is_about_events = ["topics", "match", "filter", "transform"].iter().any(|field| problem.starts_with(field));
            if is_about_events {
                eprintln!("pgoutbox: {problem}");
                return Ok(Exit::Failed);
            }
            eprintln!("note: {problem}");
        }
        let events = match (&self.event, &mut operator) {
            (Some(path), _) => vec![read(path)?],
            (None, Some(operator)) => operator.recent_events(self.last).await?,
            (None, None) => Vec::new(),
        };
        if events.is_empty() {
            eprintln!("the log is empty: publish an event, or give one with --event FILE");
        }
        let types = match &mut operator {
            Some(operator) => operator.list_event_types().await?,
            None => Vec::new(),
        };
        let types = Types::new(types.into_iter().map(|row| Arc::new(EventType::read(row))));
        let subscription = Arc::new(subscription);
        let mut all_good = true;
        for event in events {
            all_good &= self.show(&subscription, &types, event)?;
        }
        Ok(if all_good { Exit::Done } else { Exit::Failed })
    }

    fn over(&self, mut row: Row) -> Row {
        if !self.topics.is_empty() {
            row.topics.clone_from(&self.topics);
        }
        row.matching = self.matching.clone().or(row.matching);
        row.filter = self.filter.clone().or(row.filter);
        row.transform = self.transform.clone().or(row.transform);
        row
    }

    /// Prints what becomes of one event. Returns whether everything could be evaluated.
    fn show(&self, subscription: &Arc<Subscription>, types: &Types, event: Event) -> anyhow::Result<bool> {
        let wanted = subscription.explain(&event);
        let mut delivery = delivery(subscription.clone(), event);
        let prepared = types.prepare(&delivery.event, subscription.row.schema_version, &mut Vec::new());
        let refused = prepared.map(|event| delivery.event = event).err().map(|refusal| refusal.why);
        let outgoing = matches!(wanted, Wanted::Yes).then(|| refused.map_or_else(|| delivery.outgoing(), Err));
        let (sent, failed) = match &outgoing {
            Some(Ok(outgoing)) => match subscription.outlet.preview(outgoing) {
                Some(Ok(body)) => (Some(body), None),
                Some(Err(why)) => (None, Some(why)),
                None => (Some(outgoing.event.payload.clone()), None),
            },
            Some(Err(why)) => (None, Some(why.clone())),
            None => (None, if let Wanted::Failed(why) = &wanted { Some(why.clone()) } else { None }),
        };
        let condition = if let Wanted::No(condition) = &wanted { Some(condition) } else { None };
        let part = if let Some(Condition::Filter(part)) = condition { Some(part) } else { None };
        if self.json {
            let outgoing = outgoing.as_ref().and_then(|outgoing| outgoing.as_ref().ok());
            print::json([json!({
                "event": delivery.event.id,
                "position": delivery.event.position,
                "topic": delivery.event.topic,
                "wanted": wanted == Wanted::Yes,
                "condition": condition.map(ToString::to_string),
                "part": part,
                "error": failed,
                "body": sent,
                "key": outgoing.and_then(|outgoing| outgoing.event.key.clone()),
                "headers": outgoing.and_then(|outgoing| RawValue::from_string(outgoing.event.headers.clone()).ok()),
                "sink": outgoing.and_then(|outgoing| outgoing.fields.as_deref().cloned()),
            })])?;
        } else {
            let (word, more) = match (&failed, condition, part) {
                (Some(why), ..) => ("error", why.clone()),
                (None, Some(condition), Some(part)) => ("no", format!("{condition}: {part}")),
                (None, Some(condition), None) => ("no", condition.to_string()),
                (None, None, _) => ("yes", sent.unwrap_or_default()),
            };
            let more = print::harmless(&more);
            print::line(&format!("{word:<5}  {}  {}  {more}", delivery.event.id, print::harmless(&delivery.event.topic)))?;
        }
        Ok(failed.is_none())
    }
}

fn draft() -> Row {
    Row::new("draft", &["**"], "webhook", json!({ "url": "https://example.com/" }))
}

/// A first attempt, as a relay would make it.
fn delivery(subscription: Arc<Subscription>, event: Event) -> Delivery {
    Delivery {
        id: 0,
        owed_since: event.created_at,
        attempted_at: event.created_at,
        event: Arc::new(event),
        fields: None,
        subscription,
        attempt: 1,
        lease_token: Uuid::nil(),
        unfinished: 0,
    }
}

fn read(path: &PathBuf) -> anyhow::Result<Event> {
    use std::io::Read;
    let mut text = String::new();
    let reading = || format!("reading the event from {}", path.display());
    let file: Box<dyn Read> =
        if path.as_os_str() == "-" { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path).with_context(reading)?) };
    file.take(LONGEST + 1).read_to_string(&mut text).with_context(reading)?;
    if text.len() as u64 > LONGEST {
        bail!("{}: it is larger than 1 MiB", reading());
    }
    let written: Written = serde_json::from_str(&text)
        .map_err(|error| Misuse(format!("{}: {error}; an event is {{\"topic\": \"shop.orders.create\", \"payload\": {{}}}}", reading())))?;
    Ok(Event {
        id: written.id.unwrap_or_default(),
        position: 0,
        created_at: written.created_at.unwrap_or_else(|| SystemTime::now().into()),
        topic: written.topic,
        key: written.key,
        payload: written.payload.get().to_owned(),
        headers: Value::Object(written.headers.unwrap_or_default()).to_string(),
        organization: written.organization,
        source: written.source,
        user_id: written.user_id,
        schema_version: written.schema_version,
    })
}
