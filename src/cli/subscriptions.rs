//! `subscriptions`: list, show, pause, resume and remove subscriptions.

use crate::{
    cli::config::{self, Config},
    delivery::SubscriptionId,
    event::JsonText,
    store::SubscriptionRow,
};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::json;

use super::exit::Exit;
use super::{apply, print, trial};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subscriptions {
    /// List all subscriptions.
    List {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show all fields of a subscription.
    Show {
        /// Name of the subscription.
        name: String,
        /// Print one JSON object on one line.
        #[arg(long)]
        json: bool,
    },
    /// Try a subscription or a draft on past events: which match, which condition excludes the others,
    /// what is sent.
    Test(trial::Test),
    /// Print SQL that creates all subscriptions, except handlers of programs.
    Export {
        /// Print the JSON that `apply` reads instead. It does not say which are paused.
        #[arg(long)]
        json: bool,
    },
    /// Create and change subscriptions from a file in one transaction, and show the changes.
    Apply(apply::Apply),
    /// Stop sending; new deliveries are still recorded.
    Pause(Named),
    /// Send again after a pause, a 410 of the destination, or disabling.
    Resume(Named),
    /// Delete a subscription with its pending deliveries; dead letters stay.
    Remove(Named),
}

#[derive(Debug, clap::Args)]
pub(super) struct Named {
    /// Name of the subscription.
    name: String,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

impl Subscriptions {
    pub(super) async fn execute(
        self,
        config: impl FnOnce() -> Result<Config, config::Error>,
    ) -> anyhow::Result<Exit> {
        if let Self::Test(trial) = self {
            return trial.execute(config).await;
        }
        if let Self::Apply(apply) = self {
            return apply.execute(&config()?).await;
        }
        let operator = &mut super::connect(&config()?).await?;
        match self {
            Self::Test(_) | Self::Apply(_) => {}
            Self::Export { json } => apply::export(&operator.list_subscriptions(None).await?, json)?,
            Self::List { json } => list(&operator.list_subscriptions(None).await?, json)?,
            Self::Show { name, json } => {
                let Some(row) = operator.list_subscriptions(Some(&name)).await?.pop() else {
                    return Ok(missing(&name));
                };
                let columns = Columns::from(&row);
                let text = if json {
                    serde_json::to_string(&columns)?
                } else {
                    serde_json::to_string_pretty(&columns)?
                };
                print::written_json(&text)?;
            }
            Self::Pause(named) => {
                let changed = operator.pause_subscription(&named.name).await?;
                named.report(changed, "paused", "was already paused")?;
            }
            Self::Resume(named) => {
                let changed = operator.resume_subscription(&named.name).await?;
                named.report(changed, "resumed", "was not paused")?;
            }
            Self::Remove(named) => {
                if !operator.remove_subscription(&named.name).await? {
                    return Ok(missing(&named.name));
                }
                named.report(true, "removed", "")?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Named {
    fn report(&self, changed: bool, done: &str, already: &str) -> anyhow::Result<()> {
        if self.json {
            print::json([json!({ "subscription": self.name, "changed": changed })])?;
        }
        print::note!("{} {}", self.name, if changed { done } else { already });
        Ok(())
    }
}

fn missing(name: &str) -> Exit {
    print::note!("pgoutbox: there is no subscription {name:?}; `pgoutbox subscriptions list` lists all");
    Exit::Failed
}

fn list(rows: &[SubscriptionRow], json: bool) -> anyhow::Result<()> {
    if json {
        return Ok(print::json(rows.iter().map(Columns::from))?);
    }
    if rows.is_empty() {
        print::note!("no subscriptions yet; create one with outbox.subscribe(…)");
    }
    let cells = |row: &SubscriptionRow| {
        let state = if row.state.has_no_problem() && !row.active { "paused" } else { row.state.code() };
        let reason = row.state_reason.clone().unwrap_or_default();
        [
            row.name.clone(),
            row.sink.clone(),
            row.organization.clone().unwrap_or_default(),
            state.to_owned(),
            row.topics.join(" "),
            reason,
        ]
    };
    Ok(print::table(
        ["NAME", "SINK", "ORGANIZATION", "STATE", "TOPICS", "REASON"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
    )?)
}

/// The columns of a row that are shown as JSON.
#[derive(Serialize)]
struct Columns<'r> {
    id: SubscriptionId,
    name: &'r str,
    topics: &'r [String],
    sink: &'r str,
    config: &'r JsonText,
    r#match: Option<&'r JsonText>,
    filter: Option<&'r str>,
    transform: Option<&'r str>,
    schema_version: Option<i32>,
    organization: Option<&'r str>,
    keys: Option<&'r [String]>,
    retry: &'r JsonText,
    max_in_flight: Option<i32>,
    active: bool,
    state: &'static str,
    state_reason: Option<&'r str>,
    resumed_at: Option<DateTime<Utc>>,
}

impl<'r> From<&'r SubscriptionRow> for Columns<'r> {
    fn from(row: &'r SubscriptionRow) -> Self {
        Self {
            id: row.id,
            name: &row.name,
            topics: &row.topics,
            sink: &row.sink,
            config: &row.config,
            r#match: row.matching.as_ref(),
            filter: row.filter.as_deref(),
            transform: row.transform.as_deref(),
            schema_version: row.schema_version,
            organization: row.organization.as_deref(),
            keys: row.keys.as_deref(),
            retry: &row.retry,
            max_in_flight: row.max_in_flight,
            active: row.active,
            state: row.state.code(),
            state_reason: row.state_reason.as_deref(),
            resumed_at: row.resumed_at,
        }
    }
}
