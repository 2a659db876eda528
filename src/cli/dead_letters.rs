//! `dead-letters`: list, show, redrive and discard deliveries that were given up.

use std::io::{IsTerminal, stderr, stdin};

use crate::admin::{DeadLetter, DeadLetterFilter, Operator};
use serde_json::json;

use super::exit::Exit;
use super::{Misuse, moment::Moment, print};

#[derive(Debug, clap::Subcommand)]
pub(super) enum DeadLetters {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// Most dead letters.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i32).range(1..=100_000))]
        max_rows: i32,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Show a dead letter with the event's payload.
    Show {
        /// Id of the dead letter.
        id: i64,
        /// Print one JSON object on one line.
        #[arg(long)]
        json: bool,
    },
    /// Retry dead letters, oldest first, with the attempt count reset. Prints how many.
    Redrive(Bulk),
    /// Delete dead letters permanently, oldest first. Prints how many.
    Discard {
        #[command(flatten)]
        bulk: Bulk,
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
    #[arg(long, value_name = "PATTERN", value_parser = super::deliveries::topic_pattern)]
    topic: Option<String>,
    /// Only those whose reason, answer or status is LIKE this, such as 5__ or %certificate%
    #[arg(long, value_name = "LIKE")]
    error_like: Option<String>,
    /// Only those given up since this time, or within this duration, such as 2h.
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Bulk {
    #[command(flatten)]
    filter: Filter,
    /// Most dead letters.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(i32).range(1..=100_000))]
    max_rows: i32,
    /// Print how many match, without changing anything.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

impl DeadLetters {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        match self {
            Self::List { filter, max_rows, json } => {
                list(&mut connect().await?, filter, max_rows, json).await?
            }
            Self::Show { id, json } => return show(&mut connect().await?, id, json).await,
            Self::Redrive(bulk) => {
                let mut operator = connect().await?;
                let choice = bulk.filter.choice(&mut operator).await?;
                let count = operator.count_dead_letters(&choice).await?;
                if bulk.dry_run {
                    bulk.report(
                        "would_redrive",
                        count.redrivable.min(bulk.max_rows.into()),
                        count.redrivable,
                    )?;
                    return Ok(Exit::Done);
                }
                let redriven = operator.redrive_dead_letters(&choice, bulk.max_rows).await?;
                let left = operator.count_dead_letters(&choice).await?;
                bulk.report("redriven", redriven, left.redrivable)?;
                if left.matching > left.redrivable {
                    let orphaned = print::counted(left.matching - left.redrivable, "dead letter");
                    print::note!(
                        "{orphaned} cannot be redriven: their subscription was removed, or their event could not be read"
                    );
                }
            }
            Self::Discard { bulk, yes } => {
                let asks = stdin().is_terminal() && stderr().is_terminal();
                if !(yes || bulk.dry_run || asks) {
                    return Err(Misuse(
                        "discard deletes permanently: add --yes, or --dry-run to see how many".to_owned(),
                    )
                    .into());
                }
                let mut operator = connect().await?;
                let choice = bulk.filter.choice(&mut operator).await?;
                let matching = operator.count_dead_letters(&choice).await?.matching;
                let count = matching.min(bulk.max_rows.into());
                if bulk.dry_run {
                    bulk.report("would_discard", count, matching)?;
                    return Ok(Exit::Done);
                }
                if !yes
                    && count > 0
                    && !print::confirmed(&format!(
                        "Delete {} permanently?",
                        print::counted(count, "dead letter")
                    ))?
                {
                    print::note!("nothing was discarded");
                    return Ok(Exit::Failed);
                }
                let discarded = operator.discard_dead_letters(&choice, bulk.max_rows).await?;
                let left = operator.count_dead_letters(&choice).await?.matching;
                bulk.report("discarded", discarded, left)?;
            }
        }
        Ok(Exit::Done)
    }
}

impl Filter {
    async fn choice(&self, operator: &mut Operator) -> anyhow::Result<DeadLetterFilter> {
        let since = match self.since {
            Some(moment) => Some(moment.past(operator).await?),
            None => None,
        };
        Ok(DeadLetterFilter {
            subscription: self.subscription.clone(),
            topic: self.topic.clone(),
            error_like: self.error_like.clone(),
            since,
        })
    }
}

impl Bulk {
    fn report(&self, done: &str, count: i64, left: i64) -> anyhow::Result<()> {
        if self.json {
            let after = if self.dry_run { "matching" } else { "left" };
            print::json([json!({ done: count, after: left })])?;
        } else {
            print::line(&count.to_string())?;
        }
        match (self.dry_run, left) {
            (true, _) => {
                print::note!("nothing was changed; {} match in total", print::counted(left, "dead letter"))
            }
            (false, 0) => {}
            (false, _) => print::note!("{} left; run it again", print::counted(left, "dead letter")),
        }
        Ok(())
    }
}

async fn list(operator: &mut Operator, filter: Filter, max_rows: i32, json: bool) -> anyhow::Result<()> {
    let choice = filter.choice(operator).await?;
    let letters = operator.list_dead_letters(&choice, max_rows).await?;
    if letters.len() as i64 == i64::from(max_rows) {
        print::note!("these are the newest {max_rows}; --max-rows shows more");
    }
    if json {
        return Ok(print::json(&letters)?);
    }
    if letters.is_empty() {
        print::note!("no dead letters");
    }
    let cells = |letter: &DeadLetter| {
        [
            letter.id.to_string(),
            letter.died_at.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
            letter.subscription.clone(),
            letter.topic.clone(),
            letter.reason.clone(),
            letter.status.map(|status| status.to_string()).unwrap_or_default(),
            letter.attempts.to_string(),
            letter.event_id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string()),
        ]
    };
    let names = ["ID", "DIED AT", "SUBSCRIPTION", "TOPIC", "REASON", "STATUS", "ATTEMPTS", "EVENT"];
    Ok(print::table(names, &letters.iter().map(cells).collect::<Vec<_>>())?)
}

async fn show(operator: &mut Operator, id: i64, json: bool) -> anyhow::Result<Exit> {
    let Some(letter) = operator.show_dead_letter(id).await? else {
        print::note!("pgoutbox: there is no dead letter {id}");
        return Ok(Exit::Failed);
    };
    if json {
        print::written_json(letter.get())?;
    } else {
        // Keep the text of each column: parsing would change long numbers of the payload.
        let columns: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
            serde_json::from_str(letter.get())?;
        print::written_json(&serde_json::to_string_pretty(&columns)?)?;
    }
    Ok(Exit::Done)
}
