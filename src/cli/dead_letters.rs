//! `dead-letters`: list, show, redrive and discard deliveries that were given up.

use crate::{
    admin::{BulkVerb, DeadLetter, DeadLetterFilter, DeadLetterGroup, Operator},
    delivery::rate::Rate,
};

use super::{
    bulk::{Bulk, Consent},
    exit::Exit,
    listing::Listing,
    moment::{self, Moment},
    print,
    redrive::redrive,
};

const WHAT: &str = "dead letter";
/// What ids cannot be combined with.
const FILTERS: [&str; 7] = ["subscription", "topic", "error_like", "since", "until", "all", "dry_run"];

#[derive(Debug, clap::Subcommand)]
pub(super) enum DeadLetters {
    /// List dead letters, newest first.
    List {
        #[command(flatten)]
        filter: Filter,
        /// List one row for each subscription, reason and answer, with counts and the newest.
        #[arg(long)]
        grouped: bool,
        #[command(flatten)]
        listing: Listing,
    },
    /// Show dead letters with their events' payloads.
    Show {
        /// Ids of the dead letters.
        #[arg(required = true, value_name = "ID")]
        ids: Vec<i64>,
        /// Print one JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// Retry dead letters, oldest first, with the attempt count reset. Prints how many.
    Redrive {
        /// Ids of dead letters, instead of a filter.
        #[arg(value_name = "ID", conflicts_with_all = FILTERS)]
        ids: Vec<i64>,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        bulk: Bulk,
        /// Redrive so many in a time, such as 50/s, 300/m or 1000/h: all that match, unless --limit says
        /// how many. An interrupt (Ctrl-C) stops it, and what was redriven stays.
        #[arg(long, value_name = "RATE", value_parser = Rate::parse, conflicts_with = "ids")]
        rate: Option<Rate>,
    },
    /// Delete dead letters permanently, oldest first. Prints how many.
    Discard {
        /// Ids of dead letters, instead of a filter.
        #[arg(value_name = "ID", conflicts_with_all = FILTERS)]
        ids: Vec<i64>,
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        bulk: Bulk,
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
    #[arg(long, value_name = "PATTERN", value_parser = super::deliveries::topic_pattern)]
    topic: Option<String>,
    /// Only those whose reason, answer or status is LIKE this, such as 5__ or %certificate%
    #[arg(long, value_name = "LIKE")]
    error_like: Option<String>,
    /// Only those given up since this time, or within this duration, such as 2h.
    #[arg(long, value_name = "WHEN")]
    since: Option<Moment>,
    /// Only those given up before this time, or longer ago than this duration, such as 2h.
    #[arg(long, value_name = "WHEN")]
    until: Option<Moment>,
}

impl DeadLetters {
    pub(super) async fn execute(
        self,
        connect: impl AsyncFnOnce() -> anyhow::Result<Operator>,
    ) -> anyhow::Result<Exit> {
        match self {
            Self::List { filter, grouped: true, listing } => {
                group(&mut connect().await?, filter, &listing).await?
            }
            Self::List { filter, grouped: false, listing } => {
                list(&mut connect().await?, filter, &listing).await?
            }
            Self::Show { ids, json } => return show(&mut connect().await?, &ids, json).await,
            Self::Redrive { ids, bulk, .. } if !ids.is_empty() => {
                let mut operator = connect().await?;
                let mut missing = Vec::new();
                for id in &ids {
                    if operator.redrive_dead_letters(&only(*id), 1).await? == 0 {
                        missing.push(*id);
                    }
                }
                let why = "is not there, its subscription was removed, or its event could not be read";
                return done(&bulk, BulkVerb::Redrive, &ids, &missing, why);
            }
            Self::Redrive { filter, bulk, rate, .. } => {
                bulk.check(filter.chooses())?;
                let mut operator = connect().await?;
                let choice = filter.choice(&mut operator).await?;
                return redrive(&mut operator, choice, &bulk, rate).await;
            }
            Self::Discard { ids, bulk, consent, .. } if !ids.is_empty() => {
                consent.check(&bulk, "discard deletes permanently")?;
                let mut operator = connect().await?;
                let count = ids.len() as i64;
                let question = format!("Delete {} permanently?", print::counted(count, WHAT));
                if !consent.given(count, &question)? {
                    print::note!("nothing was discarded");
                    return Ok(Exit::Failed);
                }
                let mut missing = Vec::new();
                for id in &ids {
                    if operator.discard_dead_letters(&only(*id), 1).await? == 0 {
                        missing.push(*id);
                    }
                }
                return done(&bulk, BulkVerb::Discard, &ids, &missing, "is not there");
            }
            Self::Discard { filter, bulk, consent, .. } => {
                bulk.check(filter.chooses())?;
                consent.check(&bulk, "discard deletes permanently")?;
                let mut operator = connect().await?;
                let choice = filter.choice(&mut operator).await?;
                let counted = operator.discard_in_bulk(&choice, bulk.max_rows(), true).await?;
                if bulk.dry_run {
                    bulk.show(&counted)?;
                    return Ok(Exit::Done);
                }
                let question = format!("Delete {} permanently?", print::counted(counted.count, WHAT));
                if !consent.given(counted.count, &question)? {
                    print::note!("nothing was discarded");
                    return Ok(Exit::Failed);
                }
                bulk.show(&operator.discard_in_bulk(&choice, bulk.max_rows(), false).await?)?;
            }
        }
        Ok(Exit::Done)
    }
}

/// Selects one dead letter.
fn only(id: i64) -> DeadLetterFilter {
    DeadLetterFilter { id: Some(id), ..DeadLetterFilter::default() }
}

/// Says how many of these were changed, and names the others.
fn done(bulk: &Bulk, verb: BulkVerb, ids: &[i64], missing: &[i64], why: &str) -> anyhow::Result<Exit> {
    bulk.report(verb, (ids.len() - missing.len()) as i64, 0)?;
    for id in missing {
        print::note!("dead letter {id} {why}");
    }
    Ok(if missing.is_empty() { Exit::Done } else { Exit::Failed })
}

impl Filter {
    /// Whether it leaves anything out.
    fn chooses(&self) -> bool {
        let Self { subscription, topic, error_like, since, until } = self;
        subscription.is_some()
            || topic.is_some()
            || error_like.is_some()
            || since.is_some()
            || until.is_some()
    }

    async fn choice(&self, operator: &mut Operator) -> anyhow::Result<DeadLetterFilter> {
        let since = moment::past(self.since, operator).await?;
        let until = moment::past(self.until, operator).await?;
        Ok(DeadLetterFilter {
            subscription: self.subscription.clone(),
            topic: self.topic.clone(),
            error_like: self.error_like.clone(),
            since,
            id: None,
            until,
        })
    }
}

async fn list(operator: &mut Operator, filter: Filter, listing: &Listing) -> anyhow::Result<()> {
    let choice = filter.choice(operator).await?;
    let letters = operator.list_dead_letters(&choice, None, listing.limit).await?;
    listing.note(letters.len(), "the newest ");
    if listing.json {
        return Ok(print::json(&letters)?);
    }
    if letters.is_empty() {
        print::note!("no dead letters");
    }
    let cells = |letter: &DeadLetter| {
        [
            letter.id.to_string(),
            moment::shown(letter.died_at),
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

async fn group(operator: &mut Operator, filter: Filter, listing: &Listing) -> anyhow::Result<()> {
    let choice = filter.choice(operator).await?;
    let groups = operator.group_dead_letters(&choice, listing.limit).await?;
    listing.note(groups.len(), "the largest ");
    if listing.json {
        return Ok(print::json(&groups)?);
    }
    if groups.is_empty() {
        print::note!("no dead letters");
    }
    let cells = |group: &DeadLetterGroup| {
        [
            group.dead_letters.to_string(),
            group.subscription.clone(),
            group.reason.clone(),
            print::or_empty(group.status.as_ref()),
            moment::shown(group.newest_at),
            group.newest_id.to_string(),
            group.answer.clone().unwrap_or_default(),
        ]
    };
    let names = ["COUNT", "SUBSCRIPTION", "REASON", "STATUS", "NEWEST AT", "NEWEST", "ANSWER"];
    Ok(print::table(names, &groups.iter().map(cells).collect::<Vec<_>>())?)
}

async fn show(operator: &mut Operator, ids: &[i64], json: bool) -> anyhow::Result<Exit> {
    let mut exit = Exit::Done;
    for id in ids {
        let Some(letter) = operator.show_dead_letter(*id).await? else {
            print::note!("pgoutbox: there is no dead letter {id}");
            exit = Exit::Failed;
            continue;
        };
        if json {
            print::json([letter])?;
            continue;
        }
        let one = &letter.letter;
        print::fields(&[
            ("dead letter", one.id.to_string()),
            ("subscription", one.subscription.clone()),
            ("event", one.event_id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string())),
            ("topic", one.topic.clone()),
            ("key", print::or_empty(one.key.as_ref())),
            ("organization", print::or_empty(one.organization.as_ref())),
            ("source", print::or_empty(letter.source.as_ref())),
            ("user", print::or_empty(letter.user_id.as_ref())),
            ("schema version", print::or_empty(letter.schema_version.as_ref())),
            ("published at", moment::shown(letter.created_at)),
            ("given up at", moment::shown(one.died_at)),
            ("attempts", one.attempts.to_string()),
            ("reason", one.reason.clone()),
            ("status", print::or_empty(one.status.as_ref())),
            ("answer", print::or_empty(one.answer.as_ref())),
            ("headers", letter.headers.to_string()),
            ("payload", letter.payload.to_string()),
        ])?;
    }
    Ok(exit)
}
