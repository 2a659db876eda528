//! `subscriptions test`: tries a subscription, or a draft of one, on past events. Sends and changes nothing.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use uuid::Uuid;

use super::{
    Misuse, check,
    config::{self, Config},
    exit::Exit,
    input, print,
};
use crate::{
    admin::{self, Trial},
    event::{
        Event, Position,
        types::{EventType, Types},
    },
    store::SubscriptionRow,
    subscription::Subscription,
};

/// Largest file with an event, in bytes.
const LONGEST: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Test {
    /// Name of a subscription; without it, a draft: a webhook for every topic, changed by the options
    /// below.
    name: Option<String>,
    /// Replace the topic patterns; may be repeated.
    #[arg(long, value_name = "PATTERN")]
    topics: Vec<String>,
    /// Replace the JSON that the payload must contain.
    #[arg(long = "match", value_name = "JSON")]
    matching: Option<String>,
    /// Replace the filter.
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// Replace the transform.
    #[arg(long, value_name = "CEL")]
    transform: Option<String>,
    /// Read an event from a file with one JSON object: {"topic": …, "payload": …, "key": …}; - is
    /// standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "last")]
    event: Option<PathBuf>,
    /// Number of recent events.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1000))]
    last: i64,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

/// An event in a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventFile {
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

impl Test {
    pub(super) async fn execute(
        self,
        config: impl FnOnce() -> Result<Config, config::Error>,
    ) -> anyhow::Result<Exit> {
        // A draft on an event from a file needs neither a database nor a configuration.
        let config = if self.name.is_some() || self.event.is_none() { Some(config()?) } else { None };
        let mut operator = match &config {
            Some(config) => Some(super::connect(config).await?),
            None => None,
        };
        let sinks = match &config {
            Some(config) => check::registry(config)?,
            // Nothing connects: any valid address will do.
            None => check::registry(&Config::new("postgres:///".into()))?,
        };
        let row = match (&self.name, &mut operator) {
            (Some(name), Some(operator)) => match operator.list_subscriptions(Some(name)).await?.pop() {
                Some(row) => row,
                None => {
                    print::note!(
                        "pgoutbox: there is no subscription {name:?}; `pgoutbox subscriptions list` lists all"
                    );
                    return Ok(Exit::Failed);
                }
            },
            _ => draft(),
        };
        let (subscription, problem) = Subscription::bind(self.with_options(row)?, &sinks);
        if let Some(problem) = problem {
            // A problem of secrets or destination still allows a trial; an invalid expression
            // does not.
            let is_about_events =
                ["topics", "match", "filter", "transform"].iter().any(|field| problem.starts_with(field));
            if is_about_events {
                print::note!("pgoutbox: {problem}");
                return Ok(Exit::Failed);
            }
            print::note!("note: {problem}");
        }
        let events = match (&self.event, &mut operator) {
            (Some(path), _) => vec![read(path)?],
            (None, Some(operator)) => operator.recent_events(self.last).await?,
            (None, None) => Vec::new(),
        };
        if events.is_empty() {
            print::note!("the log is empty; publish an event, or pass one with --event FILE");
        }
        let types = match &mut operator {
            Some(operator) => operator.list_event_types(None, i32::MAX).await?,
            None => Vec::new(),
        };
        let types = Types::new(types.into_iter().map(|row| Arc::new(EventType::read(row))));
        let mut all_good = true;
        let mut newest = None;
        for event in events {
            let trial = admin::try_subscription(&subscription, &types, event);
            all_good &= self.show(&trial)?;
            newest = newest.or((!trial.request.is_empty()).then_some(trial));
        }
        if let Some(trial) = newest.filter(|_| !self.json) {
            // What it would be now: an attempt has its own time and signature.
            print::line("")?;
            print::line(&format!("The request for {}:", trial.event_id))?;
            print::line("")?;
            trial.request.iter().try_for_each(|line| print::line(line))?;
            print::line("")?;
            print::line(trial.body.as_deref().unwrap_or_default())?;
        }
        Ok(if all_good { Exit::Done } else { Exit::Failed })
    }

    fn with_options(&self, mut row: SubscriptionRow) -> Result<SubscriptionRow, Misuse> {
        if !self.topics.is_empty() {
            row.topics.clone_from(&self.topics);
        }
        row.matching = input::json("--match", self.matching.as_deref())?.or(row.matching);
        row.filter = self.filter.clone().or(row.filter);
        row.transform = self.transform.clone().or(row.transform);
        Ok(row)
    }

    /// Prints the result for one event. Returns whether everything could be evaluated.
    fn show(&self, trial: &Trial) -> anyhow::Result<bool> {
        if self.json {
            print::json([trial])?;
            return Ok(trial.error.is_none());
        }
        let (answer, more) = match (&trial.error, &trial.condition, &trial.part) {
            (Some(why), ..) => ("error", why.clone()),
            (None, Some(condition), Some(part)) => ("no", format!("{condition}: {part}")),
            (None, Some(condition), None) => ("no", condition.clone()),
            (None, None, _) => ("yes", trial.body.clone().unwrap_or_default()),
        };
        let (topic, more) = (print::escaped(&trial.topic), print::escaped(&more));
        print::line(&format!("{answer:<5}  {}  {topic}  {more}", trial.event_id))?;
        Ok(trial.error.is_none())
    }
}

fn draft() -> SubscriptionRow {
    SubscriptionRow::new("draft", &["**"], "webhook", json!({ "url": "https://example.com/" }))
}

fn read(path: &Path) -> anyhow::Result<Event> {
    let text = input::read(path, LONGEST)?;
    let written: EventFile = serde_json::from_str(&text).map_err(|error| {
        Misuse(format!(
            "the event in {}: {}; an event is {{\"topic\": \"shop.orders.create\", \"payload\": {{}}}}",
            input::name(path),
            input::mistake(&text, &error)
        ))
    })?;
    Ok(Event {
        id: written.id.unwrap_or_default(),
        position: Position::default(),
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
