//! `types`: lists and writes event types, and checks past events against them.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    admin::ShownEventType,
    cli::config::Config,
    event::{
        Event, JsonText,
        topic::Pattern,
        types::{self, EventType, LARGEST, Row, Types},
    },
};
use serde::Serialize;
use uuid::Uuid;

use super::exit::Exit;
use super::{Misuse, input, print};

#[derive(Debug, clap::Subcommand)]
pub(super) enum EventTypes {
    /// List all event types.
    List {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Create or change an event type, after checking its schema and upcast.
    Add(Add),
    /// Check all event types, and recent events against them; exit code 1 if anything does not fit.
    Check(Check),
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// Topic pattern, such as shop.orders.*
    topic: String,
    /// Schema version; events without one have version 1.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..))]
    version: i32,
    /// File with a JSON Schema; - reads standard input. Without it every payload fits.
    #[arg(long, value_name = "FILE")]
    schema: Option<PathBuf>,
    /// For events that do not fit: reject makes dead letters, warn delivers and counts them.
    #[arg(long, default_value = "reject", value_parser = ["reject", "warn"])]
    mode: String,
    /// Description for people.
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// CEL expression that makes the payload of the next version.
    #[arg(long, value_name = "CEL")]
    upcast: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Only events whose topic matches this pattern.
    topic: Option<String>,
    /// Number of recent events.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
    last: i64,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl EventTypes {
    pub(super) async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        match self {
            Self::List { json } => {
                list(super::connect(config).await?.list_event_types(None, i32::MAX).await?, json)?
            }
            Self::Add(add) => return add.execute(config).await,
            Self::Check(check) => return check.execute(config).await,
        }
        Ok(Exit::Done)
    }
}

impl Add {
    async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        let row = Row {
            id: 0,
            topic: self.topic,
            version: self.version,
            schema: self.schema.as_deref().map(read).transpose()?.unwrap_or_else(|| "true".to_owned()),
            mode: self.mode,
            description: self.description,
            upcast: self.upcast,
            state_reason: None,
        };
        if let Some(problem) = EventType::read(row.clone()).problem() {
            print::note!("pgoutbox: {problem}");
            return Ok(Exit::Failed);
        }
        super::connect(config).await?.set_event_type(&row).await?;
        print::note!("{} version {} written", row.topic, row.version);
        Ok(Exit::Done)
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    // Read more than the limit: PostgreSQL removes spaces before it applies the limit.
    let text = input::read(path, 4 * LARGEST)?;
    let schema: JsonText = serde_json::from_str(&text).map_err(|error| {
        Misuse(format!("the schema in {}: {}", input::name(path), input::mistake(&text, &error)))
    })?;
    Ok(schema.to_string())
}

fn list(rows: Vec<Row>, json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(print::json(rows.into_iter().map(ShownEventType::from))?);
    }
    if rows.is_empty() {
        print::note!(
            "no event types yet; write one with `pgoutbox types add` or outbox.define_event_type(…)"
        );
    }
    let cells = |row: &Row| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        [
            row.topic.clone(),
            row.version.to_string(),
            row.mode.clone(),
            text(&row.upcast),
            text(&row.description),
            text(&row.state_reason),
        ]
    };
    let names = ["TOPIC", "VERSION", "MODE", "UPCAST", "DESCRIPTION", "PROBLEM"];
    Ok(print::table(names, &rows.iter().map(cells).collect::<Vec<_>>())?)
}

/// What `check` found, as JSON.
#[derive(Serialize)]
struct Failure<'f> {
    event_id: Option<Uuid>,
    topic: Option<&'f str>,
    failure: &'f str,
    why: &'f str,
}

impl Check {
    async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        let pattern = self
            .topic
            .as_deref()
            .map(Pattern::parse)
            .transpose()
            .map_err(|error| Misuse(error.to_string()))?;
        let operator = &mut super::connect(config).await?;
        let all: Vec<_> = operator
            .list_event_types(None, i32::MAX)
            .await?
            .into_iter()
            .map(|row| Arc::new(EventType::read(row)))
            .collect();
        let mut failures = 0;
        for one in &all {
            if let Some(problem) = one.problem() {
                failures += 1;
                self.report(
                    "type",
                    None,
                    &format!("event type {} version {}: {problem}", one.row.topic, one.row.version),
                )?;
            }
        }
        let types = Types::new(all);
        let mut checked = 0;
        for event in operator.recent_events(self.last).await? {
            if pattern.as_ref().is_none_or(|pattern| pattern.matches(&event.topic)) {
                checked += 1;
                failures += self.check(&types, event)?;
            }
        }
        print::note!(
            "{}, {}, {}",
            counted(types.iter().count(), "event type"),
            counted(checked, "event"),
            counted(failures, "failure")
        );
        Ok(if failures == 0 { Exit::Done } else { Exit::Failed })
    }

    /// Checks an event as it is, and upcast to the newest version. Returns the number of failures.
    fn check(&self, types: &Types, event: Event) -> anyhow::Result<usize> {
        let newest = types.newest(&event);
        let wanted = (newest != types::version(&event)).then_some(newest);
        let event = Arc::new(event);
        let mut warnings = Vec::new();
        let refused = types.prepare(&event, wanted, &mut warnings).err();
        let mut failures = 0;
        // Invalid types were reported once already.
        for warning in warnings.into_iter().filter(|warning| warning.cause != types::Cause::InvalidType) {
            failures += 1;
            self.report("warn", Some(&event), &warning.why)?;
        }
        if let Some(refusal) = refused {
            failures += 1;
            self.report(refusal.kind.code(), Some(&event), &refusal.why)?;
        }
        Ok(failures)
    }

    fn report(&self, what: &str, event: Option<&Event>, why: &str) -> anyhow::Result<()> {
        if self.json {
            let (event_id, topic) = (event.map(|event| event.id), event.map(|event| event.topic.as_str()));
            return Ok(print::json([Failure { event_id, topic, failure: what, why }])?);
        }
        let event = event.map(|event| format!("{}  {}  ", event.id, event.topic)).unwrap_or_default();
        Ok(print::line(&format!("{what:<15}  {}", print::escaped(&format!("{event}{why}"))))?)
    }
}

fn counted(count: usize, one: &str) -> String {
    print::counted(i64::try_from(count).unwrap_or(i64::MAX), one)
}
