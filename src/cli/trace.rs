//! `trace`: says why an event was not delivered, or what became of it, for each subscription.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use serde::Serialize;
use uuid::Uuid;

use super::{exit::Exit, moment, print};
use crate::{
    admin::{self, LoggedAttempt, Operator, TraceGroup, TraceStatus, TracedEvent, TracedSubscription},
    delivery::duration,
};

/// More subscriptions that do not want the event are counted instead of listed.
const LISTED: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Trace {
    /// Id of the event.
    #[arg(value_name = "EVENT")]
    event: Uuid,
    /// Only what became of it for this subscription.
    #[arg(long, value_name = "NAME")]
    subscription: Option<String>,
    /// List also more than 20 subscriptions that do not want the event, instead of counting them.
    #[arg(long)]
    all: bool,
    /// Print one JSON object a line: the event, then each subscription.
    #[arg(long)]
    json: bool,
}

/// A line of JSON.
#[derive(Serialize)]
#[serde(untagged)]
enum Line<'a> {
    Event(&'a TracedEvent),
    Subscription(&'a TracedSubscription),
}

impl Trace {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        let traced = connect().await?.trace(self.event, self.subscription.as_deref()).await?;
        let Some(admin::Trace { event, subscriptions }) = traced else {
            print::note!(
                "pgoutbox: there is no event {}: it was not committed in this database, or it was removed from \
                 the log and no dead letter has it",
                self.event
            );
            return Ok(Exit::Failed);
        };
        if let (Some(name), true) = (&self.subscription, subscriptions.is_empty()) {
            print::note!(
                "pgoutbox: there is no subscription {name:?}; `pgoutbox subscriptions list` lists all"
            );
            return Ok(Exit::Failed);
        }
        if self.json {
            let rows = subscriptions.iter().map(Line::Subscription);
            print::json(std::iter::once(Line::Event(&event)).chain(rows))?;
            return Ok(Exit::Done);
        }
        show_event(&event)?;
        print::line("")?;
        let is_unwanted = |one: &&TracedSubscription| one.status == TraceStatus::Unwanted;
        let folds = !self.all && subscriptions.iter().filter(is_unwanted).count() > LISTED;
        for one in subscriptions.iter().filter(|one| !(folds && is_unwanted(one))) {
            show(one)?;
        }
        if folds {
            let (mut all, mut by_condition) = (0, BTreeMap::new());
            for one in subscriptions.iter().filter(is_unwanted) {
                *by_condition.entry(one.reason.as_deref().unwrap_or_default()).or_insert(0) += 1;
                all += 1;
            }
            let parts: Vec<String> =
                by_condition.iter().map(|(condition, count)| format!("{condition} {count}")).collect();
            print::line(&format!(
                "{} do not want it: {} (--all lists them)",
                print::counted(all, "subscription"),
                parts.join(", ")
            ))?;
        }
        print::line("")?;
        print::line(&summary(&subscriptions))?;
        Ok(Exit::Done)
    }
}

fn show_event(event: &TracedEvent) -> anyhow::Result<()> {
    let written = match &event.transaction {
        Some(transaction) => format!("{} by transaction {transaction}", moment::shown(event.created_at)),
        None => format!("{}; no longer in the log, a dead letter has it", moment::shown(event.created_at)),
    };
    let routed =
        if event.is_routed { "yes" } else { "not yet: it is in the log, and no relay has come to it" };
    Ok(print::fields(&[
        ("event", event.event_id.to_string()),
        ("position", event.position.to_string()),
        ("topic", event.topic.clone()),
        ("key", print::or_empty(event.key.as_ref())),
        ("organization", print::or_empty(event.organization.as_ref())),
        ("source", print::or_empty(event.source.as_ref())),
        ("user", print::or_empty(event.user_id.as_ref())),
        ("priority", if event.priority == 0 { String::new() } else { event.priority.to_string() }),
        ("published at", written),
        ("deliver after", event.deliver_after.map(moment::shown).unwrap_or_default()),
        ("routed", routed.to_owned()),
    ])?)
}

/// A line for a subscription, and one for each attempt.
fn show(one: &TracedSubscription) -> anyhow::Result<()> {
    let name = match &one.subscription {
        Some(name) if one.detail.is_deleted => format!("{name} (deleted)"),
        Some(name) => name.clone(),
        None => "a deleted subscription".to_owned(),
    };
    print::line(&format!("{name}: {}", sentence(one)))?;
    one.log.iter().try_for_each(|made| print::line(&format!("  {}", attempt(made))))?;
    if one.detail.condition.is_some() && one.detail.place.is_some() {
        print::line("  it was owed under other conditions; it is removed instead of sent")?;
    }
    if let (Some(at), true) = (one.detail.changed_at, one.status.group() != TraceGroup::Waiting) {
        let at = moment::shown(at);
        print::line(&format!("  the subscription was changed at {at}; before, it had other conditions"))?;
    }
    Ok(())
}

fn sentence(one: &TracedSubscription) -> String {
    let detail = &one.detail;
    let mut text = one.status.code().to_owned();
    if let Some(reason) = &one.reason {
        let _ = write!(text, ", {reason}");
    }
    if let Some(part) = detail.part.as_ref().filter(|_| one.status == TraceStatus::Unwanted) {
        let _ = write!(text, ": {part}");
    }
    if let Some(http) = detail.http_status {
        let _ = write!(text, " {http}");
    }
    if let Some(answer) = detail.answer.as_ref().filter(|answer| !answer.is_empty()) {
        let _ = write!(text, " ({answer})");
    }
    if one.attempts > 0 {
        let _ = write!(text, ", {}", print::counted(one.attempts.into(), "attempt"));
    }
    if let Some(at) = detail.delivered_at {
        let _ = write!(text, " at {}", moment::shown(at));
    }
    if let Some(id) = detail.dead_letter {
        let _ = write!(text, ", dead letter {id}");
        if let Some(at) = detail.died_at {
            let _ = write!(text, " since {}", moment::shown(at));
        }
    }
    if let Some(relay) = &detail.relay {
        let _ = write!(text, ", by relay {relay}");
    }
    if !detail.breakers.is_empty() {
        let _ = write!(text, ", breaker open in {}", detail.breakers.join(", "));
    }
    match (&one.waits_for, one.until) {
        (Some(what), Some(until)) => {
            let _ = write!(text, "; waits for {what}, until {}", moment::shown(until));
        }
        (Some(what), None) => {
            let _ = write!(text, "; waits for {what}");
        }
        (None, _) => {}
    }
    if matches!(one.status, TraceStatus::Settled | TraceStatus::Unknown) {
        let _ = write!(text, ": {}", one.status.meaning().replace('`', ""));
    }
    text
}

fn attempt(made: &LoggedAttempt) -> String {
    let took = Duration::try_from_secs_f64(made.seconds).unwrap_or_default();
    let took = duration::format(Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX)));
    let mut text = format!(
        "{} attempt {} by {}: {}, took {took}",
        moment::shown(made.at),
        made.attempt,
        made.relay,
        made.outcome
    );
    if let Some(reason) = &made.reason {
        let _ = write!(text, ", {reason}");
    }
    if let Some(status) = made.status {
        let _ = write!(text, " {status}");
    }
    if made.ambiguous {
        text.push_str(", may have arrived");
    }
    if made.stale {
        text.push_str(", lease lost");
    }
    if let Some(answer) = made.answer.as_ref().filter(|answer| !answer.is_empty()) {
        let _ = write!(text, " ({answer})");
    }
    text
}

/// How many subscriptions each group has.
fn summary(subscriptions: &[TracedSubscription]) -> String {
    let mut counts: BTreeMap<TraceGroup, usize> = BTreeMap::new();
    for one in subscriptions {
        *counts.entry(one.status.group()).or_insert(0) += 1;
    }
    let parts: Vec<String> = counts
        .into_iter()
        .map(|(group, count)| {
            let what = match group {
                TraceGroup::Delivered => "delivered",
                TraceGroup::Settled => "settled without a record",
                TraceGroup::Waiting => "waiting",
                TraceGroup::GivenUp => "given up",
                TraceGroup::NotOwed => "not owed",
                TraceGroup::Unknown => "unknown",
            };
            format!("{count} {what}")
        })
        .collect();
    if parts.is_empty() { "there are no subscriptions".to_owned() } else { parts.join(", ") }
}
