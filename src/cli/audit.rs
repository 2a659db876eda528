//! `audit`: lists who changed what.

use super::{
    listing::Listing,
    moment::{self, Moment},
    print,
};
use crate::admin::{AuditEntry, Operator};

#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// Only changes of this subscription.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only those since this time, or within this duration, such as 2h.
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
    #[command(flatten)]
    listing: Listing,
}

impl Audit {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<()> {
        let operator = &mut connect().await?;
        let since = moment::past(self.since, operator).await?;
        let (name, most) = (self.subscription.as_deref(), self.listing.limit);
        let entries = operator.list_audit(name, since, None, most).await?;
        self.listing.note(entries.len(), "the newest ");
        if self.listing.json {
            return Ok(print::json(&entries)?);
        }
        if entries.is_empty() {
            print::note!("no changes");
        }
        let names = ["AT", "ACTION", "SUBSCRIPTION", "ROWS", "LOGIN", "ROLE", "APPLICATION", "DETAILS"];
        Ok(print::table(names, &entries.iter().map(cells).collect::<Vec<_>>())?)
    }
}

fn cells(entry: &AuditEntry) -> [String; 8] {
    let role = if entry.role == entry.login { String::new() } else { entry.role.clone() };
    [
        moment::shown(entry.at),
        entry.action.clone(),
        entry.subscription.clone().unwrap_or_default(),
        print::or_empty(entry.rows.as_ref()),
        entry.login.clone(),
        role,
        entry
            .actor
            .as_ref()
            .map_or_else(|| entry.application.clone(), |actor| format!("{} for {actor}", entry.application)),
        entry.details.to_string(),
    ]
}
