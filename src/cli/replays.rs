//! `replay`: sends events of the log again, with its progress on a terminal. `replays`: lists, pauses,
//! resumes and cancels what was started.

use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use uuid::Uuid;

use super::{
    check,
    config::{self, Config},
    deliveries::topic_pattern,
    exit::Exit,
    listing::Listing,
    moment::{self, Moment},
    print,
    signals::Signals,
};
use crate::{
    admin::{self, Operator, ReplayOrder},
    subscription::Subscription,
};

/// How often the progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Width of the bar, in characters.
const BAR: usize = 30;

#[derive(Debug, clap::Args)]
pub(super) struct Start {
    /// Name of the subscription.
    name: String,
    /// Send events that were published at this time or later: 2026-01-31T12:00:00Z, or 2h ago.
    #[arg(long, value_name = "TIME", required_unless_present = "event")]
    since: Option<Moment>,
    /// Send events that were published before this time [default: now].
    #[arg(long, value_name = "TIME")]
    until: Option<Moment>,
    /// Only events whose topic matches this pattern, such as shop.orders.*
    #[arg(long, value_name = "PATTERN", value_parser = topic_pattern)]
    topic: Option<String>,
    /// Only the event with this id.
    #[arg(long, value_name = "ID")]
    event: Option<Uuid>,
    /// Send at most so many in a time, such as 50/s, 600/m or 1000/h.
    #[arg(long, value_name = "RATE", value_parser = super::pace::rate)]
    rate: Option<String>,
    /// Print how many events would be sent, without sending any.
    #[arg(long)]
    dry_run: bool,
    /// Wait until it is done, also without a terminal.
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Start it and do not wait.
    #[arg(long)]
    no_wait: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Subcommand)]
pub(super) enum Replays {
    /// List replays, newest first.
    List {
        /// Only those of this subscription.
        #[arg(long, value_name = "NAME")]
        subscription: Option<String>,
        #[command(flatten)]
        listing: Listing,
    },
    /// Pause a replay; the few deliveries that are queued are still sent.
    Pause(One),
    /// Go on with a paused replay.
    Resume(One),
    /// End a replay: what waits of it is never sent.
    Cancel(One),
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// Id of the replay.
    id: i64,
}

/// How a replay is followed.
#[derive(Debug, Clone, Copy)]
enum Ended {
    /// It is done or cancelled.
    Yes(Exit),
    /// A signal came first.
    Interrupted,
}

impl Start {
    pub(super) async fn execute(
        self,
        config: impl FnOnce() -> Result<Config, config::Error>,
    ) -> anyhow::Result<Exit> {
        let config = config()?;
        let mut operator = super::connect(&config).await?;
        let order = ReplayOrder {
            subscription: self.name.clone(),
            since: moment::past(self.since, &mut operator).await?,
            until: moment::past(self.until, &mut operator).await?,
            topic: self.topic.clone(),
            event: self.event,
            rate: self.rate.clone(),
        };
        if self.dry_run {
            return self.count(&config, &mut operator, &order).await;
        }
        let id = operator.start_replay(&order).await?;
        if self.json {
            print::json(operator.list_replays(None, Some(id), None, 1).await?)?;
        } else {
            print::line(&id.to_string())?;
        }
        if self.no_wait || !(self.wait || stderr().is_terminal()) {
            print::note!("replay {id} runs; `pgoutbox replays list` shows how far it is");
            return Ok(Exit::Done);
        }
        match follow(&mut operator, id).await? {
            Ended::Yes(exit) => Ok(exit),
            Ended::Interrupted => {
                print::note!("replay {id} goes on; `pgoutbox replays cancel {id}` ends it");
                Ok(Exit::Done)
            }
        }
    }

    async fn count(
        &self,
        config: &Config,
        operator: &mut Operator,
        order: &ReplayOrder,
    ) -> anyhow::Result<Exit> {
        let row = operator.list_subscriptions(Some(&self.name)).await?.pop();
        // Without a row the count below names the mistake.
        let row = row.unwrap_or_else(|| {
            crate::store::SubscriptionRow::new(&self.name, &["**"], "stdout", serde_json::json!({}))
        });
        let (subscription, problem) = Subscription::bind(row, &check::registry(config)?);
        let count = operator.count_replay(order, &subscription).await?;
        if let Some(problem) = problem {
            print::note!("note: {problem}");
        }
        if self.json {
            print::json([count])?;
        } else {
            print::line(&count.would_replay.to_string())?;
        }
        let seen = print::counted(count.seen, "event");
        print::note!("nothing was sent; the subscription wants {} of {seen}", count.would_replay);
        if count.filter_errors > 0 {
            let failed = print::counted(count.filter_errors, "event");
            print::note!("its conditions cannot be evaluated for {failed}");
        }
        Ok(Exit::Done)
    }
}

/// Waits until a replay has ended, and shows how far it is on a terminal.
async fn follow(operator: &mut Operator, id: i64) -> anyhow::Result<Ended> {
    let mut signals = Signals::new()?;
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let is_terminal = stderr().is_terminal();
    loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = signals.next() => {
                end_line(is_terminal);
                return Ok(Ended::Interrupted);
            }
        }
        let Some(replay) = operator.list_replays(None, Some(id), None, 1).await?.pop() else {
            end_line(is_terminal);
            print::note!("the subscription was deleted, and replay {id} with it");
            return Ok(Ended::Yes(Exit::Failed));
        };
        if is_terminal {
            print::write_progress(&shown(&replay));
        }
        if replay.ended_at.is_some() {
            end_line(is_terminal);
            let sent = print::counted(replay.sent, "delivery");
            print::note!("replay {id} is {}: {sent}, {} failed", replay.state, replay.failed);
            if replay.failed > 0 {
                let name = &replay.subscription;
                print::note!("`pgoutbox dead-letters list --subscription {name}` shows why");
            }
            return Ok(Ended::Yes(if replay.state == "done" { Exit::Done } else { Exit::Failed }));
        }
    }
}

fn end_line(is_terminal: bool) {
    if is_terminal {
        print::note!("");
    }
}

/// One line: a bar, and the counts.
fn shown(replay: &admin::Replay) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of a few characters"
    )]
    let full = ((replay.progress.clamp(0.0, 1.0) * BAR as f64) as usize).min(BAR);
    let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR - full));
    let state = if replay.state == "running" { String::new() } else { format!("  {}", replay.state) };
    format!(
        "[{bar}] {:3.0} %  seen {}  sent {}  waiting {}  failed {}{state}",
        replay.progress * 100.0,
        replay.seen,
        replay.sent,
        replay.waiting,
        replay.failed
    )
}

impl Replays {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        let (changed, id, done) = match self {
            Self::List { subscription, listing } => {
                list(&mut connect().await?, subscription.as_deref(), &listing).await?;
                return Ok(Exit::Done);
            }
            Self::Pause(One { id }) => (connect().await?.pause_replay(id).await?, id, "paused"),
            Self::Resume(One { id }) => (connect().await?.resume_replay(id).await?, id, "resumed"),
            Self::Cancel(One { id }) => (connect().await?.cancel_replay(id).await?, id, "cancelled"),
        };
        if changed {
            print::note!("replay {id} is {done}");
        } else {
            print::note!("replay {id} was not {done}: its state does not allow it, or it was so already");
        }
        Ok(Exit::Done)
    }
}

async fn list(operator: &mut Operator, subscription: Option<&str>, listing: &Listing) -> anyhow::Result<()> {
    let replays = operator.list_replays(subscription, None, None, listing.limit).await?;
    listing.note(replays.len(), "the newest ");
    if listing.json {
        return Ok(print::json(&replays)?);
    }
    if replays.is_empty() {
        print::note!("no replays");
    }
    let cells = |one: &admin::Replay| {
        [
            one.id.to_string(),
            one.subscription.clone(),
            one.state.clone(),
            format!("{:.0} %", one.progress * 100.0),
            one.seen.to_string(),
            one.sent.to_string(),
            one.waiting.to_string(),
            one.failed.to_string(),
            moment::shown(one.since),
            one.until.map(moment::shown).unwrap_or_default(),
            one.topic.clone().unwrap_or_default(),
            moment::shown(one.started_at),
            one.started_by.clone(),
        ]
    };
    let names = [
        "ID",
        "SUBSCRIPTION",
        "STATE",
        "READ",
        "SEEN",
        "SENT",
        "WAITING",
        "FAILED",
        "SINCE",
        "UNTIL",
        "TOPIC",
        "STARTED AT",
        "STARTED BY",
    ];
    Ok(print::table(names, &replays.iter().map(cells).collect::<Vec<_>>())?)
}
