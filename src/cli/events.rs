//! `events`: list and show events of the log.

use uuid::Uuid;

use super::{
    exit::Exit,
    listing::Listing,
    moment::{self, Moment},
    print,
};
use crate::admin::{EventFilter, LOOKED_AT, LoggedEvent, Operator};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Events {
    /// List events, newest first, without payloads. Looks at the newest 100000.
    List {
        /// Only those whose topic matches this pattern, such as shop.orders.*
        #[arg(long, value_name = "PATTERN", value_parser = super::deliveries::topic_pattern)]
        topic: Option<String>,
        /// Only those with this key.
        #[arg(long)]
        key: Option<String>,
        /// Only those of this organization.
        #[arg(long)]
        organization: Option<String>,
        /// Only those published since this time, or within this duration, such as 2h.
        #[arg(long, value_name = "WHEN")]
        since: Option<Moment>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show events with their headers and payloads.
    Show {
        /// Ids of the events.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<Uuid>,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
}

impl Events {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        let operator = &mut connect().await?;
        match self {
            Self::List { topic, key, organization, since, listing } => {
                let since = moment::past(since, operator).await?;
                let choice = EventFilter { topic, key, organization, since };
                list(&operator.list_events(&choice, None, listing.limit).await?, &listing)?;
                Ok(Exit::Done)
            }
            Self::Show { ids, json } => show(operator, &ids, json).await,
        }
    }
}

fn list(events: &[LoggedEvent], listing: &Listing) -> anyhow::Result<()> {
    listing.note(events.len(), "the newest ");
    if listing.json {
        return Ok(print::json(events)?);
    }
    if events.is_empty() {
        print::note!("none among the newest {LOOKED_AT} events");
    }
    let cells = |event: &LoggedEvent| {
        [
            moment::shown(event.created_at),
            event.topic.clone(),
            event.key.clone().unwrap_or_default(),
            event.organization.clone().unwrap_or_default(),
            event.event_id.to_string(),
        ]
    };
    let names = ["PUBLISHED AT", "TOPIC", "KEY", "ORGANIZATION", "EVENT"];
    Ok(print::table(names, &events.iter().map(cells).collect::<Vec<_>>())?)
}

async fn show(operator: &mut Operator, ids: &[Uuid], json: bool) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for id in ids {
        let Some(event) = operator.show_event(*id).await? else {
            print::note!("pgoutbox: there is no event {id} in the log");
            exit = Exit::Failed;
            continue;
        };
        if json {
            print::json([event])?;
            continue;
        }
        let one = &event.event;
        print::fields(&[
            ("event", one.event_id.to_string()),
            ("position", one.position.to_string()),
            ("topic", one.topic.clone()),
            ("key", print::or_empty(one.key.as_ref())),
            ("organization", print::or_empty(one.organization.as_ref())),
            ("source", print::or_empty(one.source.as_ref())),
            ("user", print::or_empty(one.user_id.as_ref())),
            ("schema version", print::or_empty(one.schema_version.as_ref())),
            ("priority", one.priority.to_string()),
            ("published at", moment::shown(one.created_at)),
            ("deliver after", one.deliver_after.map(moment::shown).unwrap_or_default()),
            ("headers", event.headers.to_string()),
            ("payload", event.payload.to_string()),
        ])?;
    }
    Ok(exit)
}
