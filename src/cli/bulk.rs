//! Commands that change many rows: how many at most, only counted or changed, and what is said of it.

use std::io::{IsTerminal, stderr, stdin};

use super::{Misuse, print};
use crate::admin::{BulkCount, BulkVerb, Unclear, unclear_choice};

#[derive(Debug, clap::Args)]
pub(super) struct Bulk {
    /// Change all of them; needed where there is no filter.
    #[arg(long)]
    all: bool,
    /// Change at most so many [default: 1000].
    #[arg(
        long = "limit",
        alias = "max-rows",
        value_name = "COUNT",
        value_parser = clap::value_parser!(i32).range(1..=100_000)
    )]
    limit: Option<i32>,
    /// Print how many match, without changing anything.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print one JSON object on one line.
    #[arg(long)]
    json: bool,
}

/// Whether to go on with what cannot be undone.
#[derive(Debug, clap::Args)]
pub(super) struct Consent {
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
}

impl Bulk {
    /// Refuses to change everything that was not asked for. `is_chosen`: whether there is a filter.
    pub(super) fn check(&self, is_chosen: bool) -> Result<(), Misuse> {
        let why = match unclear_choice(is_chosen, self.all, self.dry_run) {
            None => return Ok(()),
            Some(Unclear::Nothing) => "nothing is chosen: add a filter, or --all for all of them",
            Some(Unclear::Both) => "--all cannot be combined with a filter",
        };
        Err(Misuse(why.to_owned()))
    }

    /// So many at most.
    pub(super) fn max_rows(&self) -> i32 {
        self.limit.unwrap_or(1000)
    }

    /// Whether there is a limit that was asked for.
    pub(super) fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    /// So many of these, and no more than the limit.
    pub(super) fn of(&self, matching: i64) -> i64 {
        matching.min(self.max_rows().into())
    }

    /// Prints how many were changed, or would be, and how many are left.
    pub(super) fn report(&self, verb: BulkVerb, count: i64, left: i64) -> anyhow::Result<()> {
        self.show(&BulkCount { verb, is_dry_run: self.dry_run, count, left })
    }

    /// Prints how many were changed, or would be, and how many are left.
    pub(super) fn show(&self, counted: &BulkCount) -> anyhow::Result<()> {
        let BulkCount { verb, is_dry_run, count, left } = *counted;
        if self.json {
            print::json([counted])?;
        } else {
            print::line(&count.to_string())?;
        }
        let what = match verb {
            BulkVerb::Redrive | BulkVerb::Discard => "dead letter",
            BulkVerb::Retry | BulkVerb::Cancel => "delivery",
        };
        let counted = print::counted(left, what);
        match (is_dry_run, left) {
            (true, _) => print::note!("nothing was changed; {counted} match in total"),
            (false, 0) => {}
            (false, _) => print::note!("{counted} left; run it again"),
        }
        Ok(())
    }
}

impl Consent {
    /// Refuses at once what nobody could be asked about. `warning`: what cannot be undone.
    pub(super) fn check(&self, bulk: &Bulk, warning: &str) -> Result<(), Misuse> {
        let can_ask = stdin().is_terminal() && stderr().is_terminal();
        if self.yes || bulk.dry_run || can_ask {
            return Ok(());
        }
        Err(Misuse(format!("{warning}: add --yes, or --dry-run to see how many")))
    }

    /// Asks about so many, unless it was given.
    pub(super) fn given(&self, count: i64, question: &str) -> anyhow::Result<bool> {
        Ok(self.yes || count == 0 || print::confirmed(question)?)
    }
}
