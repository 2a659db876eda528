//! `publish`: publishes one event in its own transaction.

use std::{path::Path, time::Duration};

use crate::{
    admin::{EventStatus, Operator, Published, Said, SaidState, Waited},
    delivery::duration,
    event::Event,
};
use anyhow::Context;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Misuse,
    exit::Exit,
    input,
    moment::{self, Moment},
    print,
};

/// Largest payload read from standard input, in bytes; the database accepts 256 KiB.
const LONGEST: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Publish {
    /// Dotted name, such as shop.orders.create.
    topic: String,
    /// Payload: JSON of at most 256 KiB; - reads it from standard input.
    #[arg(default_value = "{}", allow_hyphen_values = true)]
    payload: String,
    /// Identifies what the event is about, such as the id of an order.
    #[arg(long)]
    key: Option<String>,
    /// Tenant of the event.
    #[arg(long)]
    organization: Option<String>,
    /// Header; may be repeated.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    headers: Vec<(String, String)>,
    /// Id of the event; publishing the same id twice is one event.
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Priority from 0 to 1000; in a backlog each point counts as one minute of waiting.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(i32).range(0..=1000))]
    priority: i32,
    /// Earliest delivery: a time, or a duration such as 10m.
    #[arg(long, value_name = "WHEN")]
    deliver_after: Option<Moment>,
    /// Wait until it is delivered or given up, at most so long (up to 1h), and print what each subscription
    /// said. Exit code 1: a subscription gave it up, or the time was over.
    #[arg(long, value_name = "DURATION", value_parser = wait)]
    wait: Option<Duration>,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

impl Publish {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        let text = match self.payload.as_str() {
            "-" => input::read(Path::new("-"), LONGEST)?,
            text => text.to_owned(),
        };
        let payload = RawValue::from_string(text.clone()).map_err(|error| {
            let mistake = input::mistake(&text, &error);
            Misuse(format!("the payload is not JSON: {mistake}; a string needs quotes: '\"text\"'"))
        })?;
        let mut operator = connect().await?;
        let mut draft =
            Event::new(self.topic, payload).context("writing the payload")?.priority(self.priority);
        if let Some(key) = self.key {
            draft = draft.key(key);
        }
        if let Some(organization) = self.organization {
            draft = draft.organization(organization);
        }
        if let Some(id) = self.id {
            draft = draft.id(id);
        }
        if let Some(moment) = self.deliver_after {
            draft = draft.deliver_after(moment.future(&mut operator).await?);
        }
        for (name, value) in self.headers {
            draft = draft.header(name, value);
        }
        let id = operator.publish(&draft).await?;
        if !self.json {
            print::line(&id.to_string())?;
        }
        let Some(timeout) = self.wait else {
            if self.json {
                print::json([Published { event_id: id }])?;
            }
            return Ok(Exit::Done);
        };
        let waited = operator.wait_for_event(id, timeout).await?;
        report(&waited, timeout, self.json)?;
        Ok(if waited.status == EventStatus::Completed { Exit::Done } else { Exit::Failed })
    }
}

/// Prints what each subscription said, and how the event stands.
fn report(waited: &Waited, timeout: Duration, json: bool) -> anyhow::Result<()> {
    if json {
        print::json([waited])?;
    } else if let Some(said) = &waited.subscriptions {
        let names = ["SUBSCRIPTION", "STATE", "DUE AT", "ATTEMPTS", "REASON", "STATUS", "ANSWER"];
        print::table(names, &said.iter().map(cells).collect::<Vec<_>>())?;
    }
    match waited.status {
        EventStatus::Completed => print::note!("completed: nothing is owed of it"),
        EventStatus::Failed => print::note!("failed: nothing is owed of it, and there is a dead letter"),
        EventStatus::Pending => print::note!(
            "still pending after {}; `pgoutbox status` shows the relays",
            duration::format(timeout)
        ),
    }
    if waited.subscriptions.is_none() {
        print::note!("what each subscription said can be read by members of outbox_admin");
    } else if waited.status != EventStatus::Pending {
        print::note!("deliveries that succeeded are named only where relay.attempt_log is \"all\"");
    }
    Ok(())
}

fn cells(said: &Said) -> [String; 7] {
    let state = match said.state {
        SaidState::Delivered => "delivered",
        SaidState::DeadLetter => "dead letter",
        SaidState::InFlight => "in flight",
        SaidState::Waiting => "waiting",
        SaidState::Superseded => "superseded",
        SaidState::Settled => "settled",
    };
    [
        said.subscription.clone(),
        state.to_owned(),
        said.due_at.map(moment::shown).unwrap_or_default(),
        said.attempts.to_string(),
        said.reason.clone().unwrap_or_default(),
        print::or_empty(said.status.as_ref()),
        said.answer.clone().unwrap_or_default(),
    ]
}

fn wait(text: &str) -> Result<Duration, String> {
    let wait = duration::parse(text).map_err(|error| error.to_string())?;
    if wait.is_zero() || wait > Duration::from_secs(60 * 60) {
        return Err("wait for more than 0s and at most 1h".to_owned());
    }
    Ok(wait)
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
