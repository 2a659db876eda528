//! `organizations`: how fast all subscriptions of an organization together are sent to.

use super::{exit::Exit, moment, print};
use crate::admin::Operator;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Organizations {
    /// List the organizations that are limited.
    Limits {
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Limit how fast all subscriptions of an organization together are sent to, by all relays.
    Limit {
        /// Name of the organization.
        organization: String,
        /// Most deliveries in a time, such as 100/s, 600/m or 1000/h; off removes the limit.
        #[arg(value_parser = rate)]
        rate: String,
    },
}

fn rate(text: &str) -> Result<String, String> {
    if text != "off" {
        super::pace::rate(text)?;
    }
    Ok(text.to_owned())
}

impl Organizations {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        match self {
            Self::Limits { json } => {
                let limits = connect().await?.list_limits(None, i32::MAX).await?;
                if json {
                    print::json(&limits)?;
                } else if limits.is_empty() {
                    print::note!("no organization is limited");
                } else {
                    let cells: Vec<_> = limits
                        .iter()
                        .map(|one| {
                            [one.organization.clone(), one.rate.clone(), moment::shown(one.updated_at)]
                        })
                        .collect();
                    print::table(["ORGANIZATION", "RATE", "SINCE"], &cells)?;
                }
            }
            Self::Limit { organization, rate } => {
                let wanted = (rate != "off").then_some(rate.as_str());
                let changed = connect().await?.limit_organization(&organization, wanted).await?;
                print::note!(
                    "{organization}: {}",
                    match (wanted, changed) {
                        (Some(rate), true) => format!("at most {rate}"),
                        (Some(rate), false) => format!("at most {rate}, as before"),
                        (None, true) => "no longer limited".to_owned(),
                        (None, false) => "not limited".to_owned(),
                    }
                );
            }
        }
        Ok(Exit::Done)
    }
}
