//! `deliveries`: list, retry and cancel deliveries that wait.

use crate::{
    admin::{DeliveryFilter, Operator, WaitingDelivery},
    event::topic,
};
use uuid::Uuid;

use super::{
    bulk::{Bulk, Consent},
    exit::Exit,
    listing::Listing,
    moment, print,
};

const WHAT: &str = "delivery";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Deliveries {
    /// List deliveries that wait: for a retry, for later, or until their subscription can take them.
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        listing: Listing,
    },
    /// Send deliveries now that wait, also behind a breaker. Prints how many.
    Retry {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        bulk: Bulk,
    },
    /// Remove deliveries that wait, so that they are never sent. Prints how many.
    Cancel {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        bulk: Bulk,
        /// Leave a dead letter for each, which can be redriven.
        #[arg(long)]
        dead_letters: bool,
        #[command(flatten)]
        consent: Consent,
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
            Self::List { filter, listing } => list(&mut connect().await?, &filter.into(), &listing).await?,
            Self::Retry { filter, bulk } => {
                bulk.check(filter.chooses())?;
                let mut operator = connect().await?;
                let choice = filter.into();
                bulk.show(&operator.retry_in_bulk(&choice, bulk.max_rows(), bulk.dry_run).await?)?;
            }
            Self::Cancel { filter, bulk, dead_letters, consent } => {
                bulk.check(filter.chooses())?;
                consent.check(&bulk, "cancelled deliveries are never sent")?;
                let mut operator = connect().await?;
                let choice = filter.into();
                let most = bulk.max_rows();
                let counted = operator.cancel_in_bulk(&choice, most, dead_letters, true).await?;
                if bulk.dry_run {
                    bulk.show(&counted)?;
                    return Ok(Exit::Done);
                }
                let what = print::counted(counted.count, WHAT);
                if !consent.given(counted.count, &format!("Cancel {what}, so that it is never sent?"))? {
                    print::note!("nothing was cancelled");
                    return Ok(Exit::Failed);
                }
                bulk.show(&operator.cancel_in_bulk(&choice, most, dead_letters, false).await?)?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Filter {
    /// Whether it leaves anything out.
    fn chooses(&self) -> bool {
        let Self { subscription, topic, event, error_like } = self;
        subscription.is_some() || topic.is_some() || event.is_some() || error_like.is_some()
    }
}

impl From<Filter> for DeliveryFilter {
    fn from(filter: Filter) -> Self {
        let Filter { subscription, topic, event, error_like } = filter;
        Self { subscription, topic, event, error_like }
    }
}

async fn list(operator: &mut Operator, choice: &DeliveryFilter, listing: &Listing) -> anyhow::Result<()> {
    let waiting = operator.list_deliveries(choice, listing.limit).await?;
    listing.note(waiting.len(), "");
    if listing.json {
        return Ok(print::json(&waiting)?);
    }
    if waiting.is_empty() {
        print::note!("no delivery waits");
    }
    let cells = |one: &WaitingDelivery| {
        [
            one.subscription.clone(),
            one.topic.clone().unwrap_or_else(|| "unknown".to_owned()),
            moment::shown(one.owed_since),
            one.due_at.map_or_else(|| "when possible".to_owned(), moment::shown),
            one.attempts.to_string(),
            one.reason.clone().unwrap_or_default(),
            one.status.map(|status| status.to_string()).unwrap_or_default(),
            one.event_id.map_or_else(|| "removed".to_owned(), |id| id.to_string()),
        ]
    };
    let names = ["SUBSCRIPTION", "TOPIC", "OWED SINCE", "DUE AT", "ATTEMPTS", "REASON", "STATUS", "EVENT"];
    Ok(print::table(names, &waiting.iter().map(cells).collect::<Vec<_>>())?)
}
