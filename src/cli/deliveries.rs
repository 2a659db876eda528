//! `deliveries`: list, retry and cancel deliveries that wait.

use std::io::{IsTerminal, stderr, stdin};

use crate::{
    admin::{DeliveryFilter, Operator, WaitingDelivery},
    event::topic,
};
use chrono::{DateTime, Utc};
use serde_json::json;
use uuid::Uuid;

use super::{Misuse, exit::Exit, print};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Deliveries {
    /// List deliveries that wait: for a retry, for later, or until their subscription can take them.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Most deliveries.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100_000))]
        max_rows: i32,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Send deliveries now that wait, also behind a breaker. Prints how many.
    Retry(Bulk),
    /// Remove deliveries that wait, so that they are never sent. Prints how many.
    Cancel {
        #[command(flatten)]
        bulk: Bulk,
        /// Leave a dead letter for each, which can be redriven.
        #[arg(long)]
        dead_letters: bool,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Only those of this subscription.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only those whose topic matches this pattern, such as shop.orders.*
    #[arg(long, value_name = "PATTERN", value_parser = topic_pattern)]
    topic: Option<String>,
    /// Only those of the event with this id.
    #[arg(long, value_name = "ID")]
    event: Option<Uuid>,
    /// Only those whose last attempt has a reason, answer or status LIKE this, such as 5__ or %certificate%
    #[arg(long, value_name = "LIKE")]
    error_like: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Bulk {
    #[command(flatten)]
    filter: Filter,
    /// Most deliveries.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    max_rows: i32,
    /// Print how many match, without changing anything.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

/// A topic pattern as it was typed.
pub(super) fn topic_pattern(text: &str) -> Result<String, topic::InvalidPattern> {
    topic::Pattern::parse(text).map(|_| text.to_owned())
}

impl Deliveries {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        match self {
            Self::List { filter, max_rows, json } => {
                list(&mut connect().await?, &filter.into(), max_rows, json).await?
            }
            Self::Retry(bulk) => {
                let mut operator = connect().await?;
                let choice = DeliveryFilter::from(bulk.filter);
                let report = Report { dry_run: bulk.dry_run, json: bulk.json };
                if bulk.dry_run {
                    let count = operator.count_deliveries(&choice).await?;
                    let first = count.retriable.min(bulk.max_rows.into());
                    report.print("would_retry", first, count.retriable)?;
                    return Ok(Exit::Done);
                }
                let retried = operator.retry_deliveries(&choice, bulk.max_rows).await?;
                let left = operator.count_deliveries(&choice).await?.retriable;
                report.print("retried", retried, if retried < bulk.max_rows.into() { 0 } else { left })?;
            }
            Self::Cancel { bulk, dead_letters, yes } => {
                let asks = stdin().is_terminal() && stderr().is_terminal();
                if !(yes || bulk.dry_run || asks) {
                    let what = "cancelled deliveries are never sent";
                    return Err(Misuse(format!("{what}: add --yes, or --dry-run to see how many")).into());
                }
                let mut operator = connect().await?;
                let choice = DeliveryFilter::from(bulk.filter);
                let report = Report { dry_run: bulk.dry_run, json: bulk.json };
                let matching = operator.count_deliveries(&choice).await?.matching;
                let count = matching.min(bulk.max_rows.into());
                if bulk.dry_run {
                    report.print("would_cancel", count, matching)?;
                    return Ok(Exit::Done);
                }
                let question =
                    format!("Cancel {}, so that it is never sent?", print::counted(count, "delivery"));
                if !yes && count > 0 && !print::confirmed(&question)? {
                    print::note!("nothing was cancelled");
                    return Ok(Exit::Failed);
                }
                let cancelled = operator.cancel_deliveries(&choice, bulk.max_rows, dead_letters).await?;
                let left = operator.count_deliveries(&choice).await?.matching;
                report.print("cancelled", cancelled, left)?;
            }
        }
        Ok(Exit::Done)
    }
}

impl From<Filter> for DeliveryFilter {
    fn from(filter: Filter) -> Self {
        let Filter { subscription, topic, event, error_like } = filter;
        Self { subscription, topic, event, error_like }
    }
}

/// How to print what was done.
struct Report {
    dry_run: bool,
    json: bool,
}

impl Report {
    fn print(&self, done: &str, count: i64, left: i64) -> anyhow::Result<()> {
        if self.json {
            let after = if self.dry_run { "matching" } else { "left" };
            print::json([json!({ done: count, after: left })])?;
        } else {
            print::line(&count.to_string())?;
        }
        let left_over = print::counted(left, "delivery");
        match (self.dry_run, left) {
            (true, _) => print::note!("nothing was changed; {left_over} match in total"),
            (false, 0) => {}
            (false, _) => print::note!("{left_over} left; run it again"),
        }
        Ok(())
    }
}

async fn list(
    operator: &mut Operator,
    choice: &DeliveryFilter,
    max_rows: i32,
    json: bool,
) -> anyhow::Result<()> {
    let waiting = operator.list_deliveries(choice, max_rows).await?;
    if waiting.len() as i64 == i64::from(max_rows) {
        print::note!("these are {max_rows}; --max-rows shows more");
    }
    if json {
        return Ok(print::json(&waiting)?);
    }
    if waiting.is_empty() {
        print::note!("no delivery waits");
    }
    let time = |at: DateTime<Utc>| at.format("%Y-%m-%dT%H:%M:%SZ").to_string();
    let cells = |one: &WaitingDelivery| {
        [
            one.subscription.clone(),
            one.topic.clone().unwrap_or_else(|| "unknown".to_owned()),
            time(one.owed_since),
            one.due_at.map_or_else(|| "when possible".to_owned(), time),
            one.attempts.to_string(),
            one.reason.clone().unwrap_or_default(),
            one.status.map(|status| status.to_string()).unwrap_or_default(),
            one.event_id.map_or_else(|| "removed".to_owned(), |id| id.to_string()),
        ]
    };
    let names = ["SUBSCRIPTION", "TOPIC", "OWED SINCE", "DUE AT", "ATTEMPTS", "REASON", "STATUS", "EVENT"];
    Ok(print::table(names, &waiting.iter().map(cells).collect::<Vec<_>>())?)
}
