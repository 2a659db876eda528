//! `publish`: publishes one event in its own transaction.

use std::path::Path;

use crate::{admin::Operator, event::Event};
use anyhow::Context;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{Misuse, input, moment::Moment, print};

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
}

impl Publish {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<()> {
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
        Ok(print::line(&id.to_string())?)
    }
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
