//! Commands that change many rows: how many at most, only counted or changed, and what is said of it.

use std::io::{IsTerminal, stderr, stdin};

use serde::{Serialize, Serializer, ser::SerializeMap as _};

use super::{Misuse, print};

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
        match (is_chosen, self.all) {
            (false, false) if !self.dry_run => {
                Err(Misuse("nothing is chosen: add a filter, or --all for all of them".to_owned()))
            }
            (true, true) => Err(Misuse("--all cannot be combined with a filter".to_owned())),
            _ => Ok(()),
        }
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

    /// Prints how many `what` were changed, or would be, and how many are left.
    pub(super) fn report(&self, done: &str, what: &str, count: i64, left: i64) -> anyhow::Result<()> {
        if self.json {
            let after = if self.dry_run { "matching" } else { "left" };
            print::json([Counts { done, count, after, left }])?;
        } else {
            print::line(&count.to_string())?;
        }
        let counted = print::counted(left, what);
        match (self.dry_run, left) {
            (true, _) => print::note!("nothing was changed; {counted} match in total"),
            (false, 0) => {}
            (false, _) => print::note!("{counted} left; run it again"),
        }
        Ok(())
    }
}

/// How many were changed, and how many are left, under these names and in this order.
struct Counts<'c> {
    done: &'c str,
    count: i64,
    after: &'c str,
    left: i64,
}

impl Serialize for Counts<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry(self.done, &self.count)?;
        map.serialize_entry(self.after, &self.left)?;
        map.end()
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
