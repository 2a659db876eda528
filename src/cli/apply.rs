//! `subscriptions export` and `subscriptions apply`: all subscriptions as SQL, and from a file.

use std::path::PathBuf;

use anyhow::Context;
use serde::Deserialize;

use super::{config::Config, connect, exit::Exit, print};
use crate::{
    admin::{self, SubscriptionSpec},
    store::SubscriptionRow,
};

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// File: TOML with one [[subscriptions]] for each subscription, or JSON with a list of that name.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also remove subscriptions that are not in the file, with their pending deliveries; handlers of
    /// programs stay.
    #[arg(long)]
    prune: bool,
    /// Show what would change without changing it.
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object a line for each change.
    #[arg(long)]
    json: bool,
}

/// The contents of a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    subscriptions: Vec<SubscriptionSpec>,
}

impl Apply {
    pub(super) async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        let specs = read(&self.file)?;
        let mut operator = connect(config).await?;
        let changes = admin::compare(&operator.list_subscriptions(None).await?, &specs, self.prune);
        for change in &changes {
            if self.json {
                print::json([change])?;
            } else {
                change.to_string().lines().try_for_each(print::line)?;
            }
        }
        if changes.is_empty() {
            print::note!("nothing to change");
        } else if self.dry_run {
            print::note!("nothing was changed");
        }
        // A dry run executes and rolls back, so that it finds what PostgreSQL refuses.
        operator.apply(&changes, &specs, !self.dry_run).await?;
        Ok(Exit::Done)
    }
}

/// Reads a file and checks it before anything is written.
fn read(path: &PathBuf) -> anyhow::Result<Vec<SubscriptionSpec>> {
    use figment::providers::{Format, Toml};
    let reading = || format!("reading {}", path.display());
    let text = std::fs::read_to_string(path).with_context(reading)?;
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let file: Result<File, anyhow::Error> = if is_json {
        serde_json::from_str(&text).map_err(Into::into)
    } else {
        figment::Figment::from(Toml::string(&text)).extract().map_err(Into::into)
    };
    let file = file.with_context(reading)?;
    admin::check_specs(&file.subscriptions)?;
    Ok(file.subscriptions)
}

/// Prints all subscriptions as SQL that creates them, except handlers: their programs create them.
pub(super) fn export(rows: &[SubscriptionRow]) -> anyhow::Result<()> {
    for row in rows.iter().filter(|row| row.sink != "handler") {
        print::raw(&admin::subscribe_statement(row))?;
    }
    Ok(())
}
