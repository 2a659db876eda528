//! `subscriptions export` and `subscriptions apply`: all subscriptions as SQL or JSON, and from a file.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use toml_edit::{ImDocument, Item, TableLike};

use super::{config::Config, connect, exit::Exit, input, print};
use crate::{
    admin::{self, SubscriptionSpec},
    event::{JsonText, filter::is_same_number},
    store::SubscriptionRow,
};

/// Largest file, in bytes.
const LARGEST: usize = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// File: TOML with one [[subscriptions]] for each subscription, or JSON with a list of that name; - reads
    /// JSON from standard input.
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
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, bound(deserialize = "J: Deserialize<'de>"))]
struct File<J> {
    subscriptions: Vec<SubscriptionSpec<J>>,
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
fn read(path: &Path) -> anyhow::Result<Vec<SubscriptionSpec>> {
    let text = input::read(path, LARGEST)?;
    let is_toml = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    let specs = if is_toml {
        of_toml(&text)
    } else {
        serde_json::from_str(&text)
            .map(|file: File<JsonText>| file.subscriptions)
            .map_err(|error| input::mistake(&text, &error))
    };
    let specs = specs.map_err(|problem| anyhow!("{}: {problem}", input::name(path)))?;
    admin::check_specs(&specs)?;
    Ok(specs)
}

fn of_toml(text: &str) -> Result<Vec<SubscriptionSpec>, String> {
    let document = ImDocument::parse(text).map_err(|error| error.to_string())?;
    check_table(document.as_table(), text)?;
    let file: File<Value> = toml_edit::de::from_str(text).map_err(|error| error.to_string())?;
    Ok(file.subscriptions.into_iter().map(Into::into).collect())
}

/// Refuses values of TOML that JSON does not have, or that would be rounded.
fn check_table(table: &dyn TableLike, text: &str) -> Result<(), String> {
    table.iter().try_for_each(|(name, item)| match item {
        Item::ArrayOfTables(tables) => tables.iter().try_for_each(|table| check_table(table, text)),
        Item::Table(table) => check_table(table, text),
        Item::Value(value) => check_value(name, value, text),
        Item::None => Ok(()),
    })
}

fn check_value(name: &str, value: &toml_edit::Value, text: &str) -> Result<(), String> {
    let span = value.span().unwrap_or_default();
    let problem = match value {
        toml_edit::Value::InlineTable(table) => return check_table(table, text),
        toml_edit::Value::Array(items) => {
            return items.iter().try_for_each(|item| check_value(name, item, text));
        }
        toml_edit::Value::Datetime(_) => "JSON has no dates; put it in quotes",
        toml_edit::Value::Float(number) if !number.value().is_finite() => "JSON has no such number",
        toml_edit::Value::Float(number) if is_rounded(&text[span.clone()], *number.value()) => {
            "the number has more digits than TOML keeps; write the subscriptions as JSON"
        }
        _ => return Ok(()),
    };
    let line = text[..span.start].matches('\n').count() + 1;
    Err(format!("{name} in line {line}: {problem}"))
}

fn is_rounded(written: &str, kept: f64) -> bool {
    let written = written.trim_start_matches('+').replace('_', "");
    !is_same_number(&written, &kept.to_string())
}

/// Prints all subscriptions except handlers, which their programs create: as SQL that creates them, or as the
/// JSON that `apply` reads.
pub(super) fn export(rows: &[SubscriptionRow], json: bool) -> anyhow::Result<()> {
    let rows = rows.iter().filter(|row| row.sink != "handler");
    if json {
        let subscriptions = rows.map(SubscriptionSpec::from).collect();
        return Ok(print::written_json(&serde_json::to_string_pretty(&File { subscriptions })?)?);
    }
    for row in rows {
        print::raw(&admin::subscribe_statement(row))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_toml_would_change_are_refused_with_their_line() {
        let head = "[[subscriptions]]\nname = 'a'\ntopics = ['**']\nsink = 'stdout'\n";
        let problem = |lines: &str| of_toml(&format!("{head}{lines}")).unwrap_err();
        assert_eq!(problem("start = 2026-01-01"), "start in line 5: JSON has no dates; put it in quotes");
        assert_eq!(problem("retry = { jitter = inf }"), "jitter in line 5: JSON has no such number");
        assert_eq!(
            problem("[subscriptions.config]\nlist = [nan]"),
            "list in line 6: JSON has no such number"
        );
        let digits = "match = { n = 0.12345678901234567890123 }";
        assert!(
            problem(digits).starts_with("n in line 5: the number has more digits"),
            "{}",
            problem(digits)
        );
        assert!(problem("match = { n = 12345678901234567890123 }").contains("line 5"));
        let misspelt = of_toml(&head.replace("[[subscriptions", "[[subscription")).unwrap_err();
        assert!(
            misspelt.contains("line 1") && misspelt.contains("unknown field `subscription`"),
            "{misspelt}"
        );

        let good = "match = { a = 1_000.5, b = +1e3, c = 0.1, d = -0.0, e = 1e300 }";
        let specs = of_toml(&format!("{head}{good}")).unwrap();
        let expected: JsonText =
            serde_json::from_str(r#"{"a": 1000.5, "b": 1000, "c": 0.1, "d": 0, "e": 1e300}"#).unwrap();
        assert_eq!(specs[0].matching, Some(expected));
    }
}
