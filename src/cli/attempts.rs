//! `attempts`: lists the attempt log.

use uuid::Uuid;

use super::{
    listing::Listing,
    moment::{self, Moment},
    print,
};
use crate::{
    admin::{AttemptFilter, LoggedAttempt, Operator},
    delivery::duration,
};

#[derive(Debug, clap::Args)]
pub(super) struct Attempts {
    /// Only those of this subscription.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// Only those of the event with this id.
    #[arg(long, value_name = "ID")]
    event: Option<Uuid>,
    /// Only those whose reason, answer or status is LIKE this, such as 5__ or %certificate%
    #[arg(long, value_name = "LIKE")]
    error_like: Option<String>,
    /// Only those since this time, or within this duration, such as 2h [default: 1h, for one event all].
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
    #[command(flatten)]
    listing: Listing,
}

impl Attempts {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<()> {
        let operator = &mut connect().await?;
        let an_hour = Moment::Duration(std::time::Duration::from_secs(60 * 60));
        let since = self.since.or_else(|| self.event.is_none().then_some(an_hour));
        let since = moment::past(since, operator).await?;
        let choice = AttemptFilter {
            subscription: self.subscription,
            event: self.event,
            error_like: self.error_like,
            since,
        };
        let attempts = operator.list_attempts(&choice, None, self.listing.limit).await?;
        self.listing.note(attempts.len(), "the newest ");
        if self.listing.json {
            return Ok(print::json(&attempts)?);
        }
        if attempts.is_empty() {
            print::note!(
                "no such attempts in the last hour or since --since; relays record what relay.attempt_log says"
            );
        }
        let names =
            ["AT", "SUBSCRIPTION", "ATTEMPT", "OUTCOME", "REASON", "STATUS", "TOOK", "EVENT", "ANSWER"];
        Ok(print::table(names, &attempts.iter().map(cells).collect::<Vec<_>>())?)
    }
}

fn cells(one: &LoggedAttempt) -> [String; 9] {
    let mut outcome = one.outcome.clone();
    if one.ambiguous {
        outcome.push_str(", may have arrived");
    }
    if one.stale {
        outcome.push_str(", lease lost");
    }
    if one.repeated {
        outcome.push_str(", possible duplicate");
    }
    let took = std::time::Duration::try_from_secs_f64(one.seconds).unwrap_or_default();
    [
        moment::shown(one.at),
        one.subscription.clone().unwrap_or_else(|| "deleted".to_owned()),
        one.attempt.to_string(),
        outcome,
        one.reason.clone().unwrap_or_default(),
        print::or_empty(one.status.as_ref()),
        duration::format(std::time::Duration::from_millis(took.as_millis() as u64)),
        one.event_id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string()),
        one.answer.clone().unwrap_or_default(),
    ]
}
