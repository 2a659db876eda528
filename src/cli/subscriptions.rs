//! `subscriptions`: list, show, create, pause, resume and delete subscriptions.

use crate::{
    admin::{Changed, ShownSubscription},
    cli::config::{self, Config},
    store::SubscriptionRow,
};

use super::{apply, create, print, trial};
use super::{exit::Exit, moment};

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
    /// Create a subscription; `apply` and outbox.subscribe(…) also change one.
    Create(Box<create::Create>),
    /// Stop sending; new deliveries are still recorded. Published as outbox.subscription.paused.
    Pause(Named),
    /// Send again after a pause, a 410 of the destination, or disabling. Published as
    /// outbox.subscription.resumed.
    Resume(Named),
    /// Delete a subscription with its pending deliveries; dead letters stay.
    #[command(visible_alias = "remove")]
    Delete(Named),
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
        if let Self::Create(create) = self {
            return create.execute(&config()?).await;
        }
        let operator = &mut super::connect(&config()?).await?;
        match self {
            Self::Test(_) | Self::Apply(_) | Self::Create(_) => {}
            Self::Export { json } => apply::export(&operator.list_subscriptions(None).await?, json)?,
            Self::List { json } => list(&operator.list_subscriptions(None).await?, json)?,
            Self::Show { name, json } => {
                let Some(row) = operator.list_subscriptions(Some(&name)).await?.pop() else {
                    return Ok(missing(&name));
                };
                if json {
                    print::json([ShownSubscription::from(row)])?;
                } else {
                    show(&row)?;
                }
            }
            Self::Pause(named) => {
                let changed = operator.pause_subscription(&named.name).await?;
                named.report(changed, "paused", "was already paused")?;
            }
            Self::Resume(named) => {
                let changed = operator.resume_subscription(&named.name).await?;
                named.report(changed, "resumed", "was not paused")?;
            }
            Self::Delete(named) => {
                if !operator.remove_subscription(&named.name).await? {
                    return Ok(missing(&named.name));
                }
                named.report(true, "deleted", "")?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Named {
    fn report(&self, changed: bool, done: &str, already: &str) -> anyhow::Result<()> {
        if self.json {
            print::json([Changed { subscription: self.name.clone(), changed }])?;
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
        return Ok(print::json(rows.iter().cloned().map(ShownSubscription::from))?);
    }
    if rows.is_empty() {
        print::note!(
            "no subscriptions yet; create one with `pgoutbox subscriptions create` or outbox.subscribe(…)"
        );
    }
    let cells = |row: &SubscriptionRow| {
        let reason = row.state_reason.clone().unwrap_or_default();
        [
            row.name.clone(),
            row.sink.clone(),
            row.organization.clone().unwrap_or_default(),
            state(row).to_owned(),
            row.topics.join(" "),
            reason,
        ]
    };
    Ok(print::table(
        ["NAME", "SINK", "ORGANIZATION", "STATE", "TOPICS", "REASON"],
        &rows.iter().map(cells).collect::<Vec<_>>(),
    )?)
}

fn state(row: &SubscriptionRow) -> &'static str {
    if row.state.has_no_problem() && !row.active { "paused" } else { row.state.code() }
}

fn show(row: &SubscriptionRow) -> anyhow::Result<()> {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    Ok(print::fields(&[
        ("name", row.name.clone()),
        ("topics", row.topics.join(" ")),
        ("sink", row.sink.clone()),
        ("config", row.config.to_string()),
        ("match", print::or_empty(row.matching.as_ref())),
        ("filter", text(&row.filter)),
        ("transform", text(&row.transform)),
        ("organization", text(&row.organization)),
        ("schema version", print::or_empty(row.schema_version.as_ref())),
        ("keys", row.keys.as_deref().unwrap_or_default().join(" ")),
        ("ordering", row.ordering.code().to_owned()),
        ("on exhausted", row.on_exhausted.code().to_owned()),
        ("coalesce", row.coalesce.code().to_owned()),
        ("rate", text(&row.rate)),
        ("retry", row.retry.to_string()),
        ("max in flight", print::or_empty(row.max_in_flight.as_ref())),
        ("state", state(row).to_owned()),
        ("reason", text(&row.state_reason)),
        ("changed or resumed", row.resumed_at.map(moment::shown).unwrap_or_default()),
    ])?)
}
