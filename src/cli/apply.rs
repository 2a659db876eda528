//! `subscriptions export` and `subscriptions apply`: all of them as SQL, and from a file. One transaction, and a diff of it.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, bail};
use pgoutbox::{
    config::Config,
    filter::{Filter, Transform},
    operate::Operator,
    subscription::Row,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{connect, print};
use crate::Exit;

#[derive(Debug, clap::Args)]
pub(super) struct Apply {
    /// The file: TOML with a [[subscriptions]] for each, or JSON with a list of that name.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Also remove subscriptions that the file does not name, and what they are still owed; handlers of programs stay.
    #[arg(long)]
    prune: bool,
    /// Show what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// One JSON object a line for each change.
    #[arg(long)]
    json: bool,
}

/// What a file holds.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    subscriptions: Vec<Wanted>,
}

/// A subscription in a file: the parameters of `outbox.subscribe`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    topics: Vec<String>,
    sink: String,
    #[serde(default = "empty")]
    config: Value,
    #[serde(rename = "match")]
    matching: Option<Value>,
    filter: Option<String>,
    transform: Option<String>,
    organization: Option<String>,
    ordering: Option<String>,
    #[serde(default = "empty")]
    retry: Value,
    keys: Option<Vec<String>>,
    max_in_flight: Option<i32>,
    schema_version: Option<i32>,
    /// Counts only when it is made.
    start: Option<String>,
}

fn empty() -> Value {
    json!({})
}

/// One difference between the file and the database.
#[derive(Debug, PartialEq, Serialize)]
struct Change {
    subscription: String,
    /// `create`, `change` or `remove`
    change: &'static str,
    /// For a change: the fields, with what they are and what they become.
    fields: BTreeMap<&'static str, (Value, Value)>,
}

impl Apply {
    pub(super) async fn execute(self, config: &Config) -> anyhow::Result<Exit> {
        let wanted = read(&self.file)?;
        let mut operator = connect(config).await?;
        let rows = operator.list_subscriptions(None).await?;
        let changes = changes(&rows, &wanted, self.prune);
        for change in &changes {
            if self.json { print::json([change])? } else { print::line(&change.to_string())? }
        }
        if changes.is_empty() {
            eprintln!("nothing to change");
        } else if self.dry_run {
            eprintln!("nothing was changed");
        }
        // A dry run goes all the way, so that what PostgreSQL refuses is refused now.
        write(&mut operator, &changes, &wanted, self.dry_run).await?;
        Ok(Exit::Done)
    }
}

/// Reads and checks a file: everything that is wrong with expressions is found before anything is written.
fn read(path: &PathBuf) -> anyhow::Result<Vec<Wanted>> {
    use figment::providers::{Format, Toml};
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
    let file: Result<File, anyhow::Error> = if is_json {
        serde_json::from_str(&text).map_err(Into::into)
    } else {
        figment::Figment::from(Toml::string(&text)).extract().map_err(Into::into)
    };
    let file = file.with_context(|| format!("reading {}", path.display()))?;
    let mut names = std::collections::HashSet::new();
    for wanted in &file.subscriptions {
        let name = &wanted.name;
        if !names.insert(name) {
            bail!("subscription {name}: it stands in the file twice");
        }
        if let Some(Err(problem)) = wanted.filter.as_deref().map(Filter::compile) {
            bail!("subscription {name}: filter: {problem}");
        }
        if let Some(Err(problem)) = wanted.transform.as_deref().map(Transform::compile) {
            bail!("subscription {name}: transform: {problem}");
        }
    }
    Ok(file.subscriptions)
}

fn changes(rows: &[Row], wanted: &[Wanted], prune: bool) -> Vec<Change> {
    let existing: BTreeMap<&str, &Row> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let mut changes = Vec::new();
    for new in wanted {
        match existing.get(new.name.as_str()) {
            None => changes.push(Change { subscription: new.name.clone(), change: "create", fields: BTreeMap::new() }),
            Some(row) => {
                let fields: BTreeMap<_, _> = of_row(row)
                    .into_iter()
                    .zip(of_file(new))
                    .filter(|(is, becomes)| is != becomes)
                    .map(|((field, is), (_, becomes))| (field, (is, becomes)))
                    .collect();
                if !fields.is_empty() {
                    changes.push(Change { subscription: new.name.clone(), change: "change", fields });
                }
            }
        }
    }
    if prune {
        let named: Vec<_> = wanted.iter().map(|new| new.name.as_str()).collect();
        let unnamed = rows.iter().filter(|row| row.sink != "handler" && !named.contains(&row.name.as_str()));
        changes.extend(unnamed.map(|row| Change { subscription: row.name.clone(), change: "remove", fields: BTreeMap::new() }));
    }
    changes
}

/// The fields that are compared, of a row.
fn of_row(row: &Row) -> Vec<(&'static str, Value)> {
    let matching = row.matching.as_deref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or(Value::Null));
    vec![
        ("topics", json!(row.topics)),
        ("sink", json!(row.sink)),
        ("config", row.config.clone()),
        ("match", matching),
        ("filter", json!(row.filter)),
        ("transform", json!(row.transform)),
        ("organization", json!(row.organization)),
        ("keys", json!(row.keys)),
        ("retry", row.retry.clone()),
        ("max_in_flight", json!(row.max_in_flight)),
        ("schema_version", json!(row.schema_version)),
    ]
}

/// The same, of a file, in the same order.
fn of_file(new: &Wanted) -> Vec<(&'static str, Value)> {
    vec![
        ("topics", json!(new.topics)),
        ("sink", json!(new.sink)),
        ("config", new.config.clone()),
        ("match", new.matching.clone().unwrap_or(Value::Null)),
        ("filter", json!(new.filter)),
        ("transform", json!(new.transform)),
        ("organization", json!(new.organization)),
        ("keys", json!(new.keys)),
        ("retry", new.retry.clone()),
        ("max_in_flight", json!(new.max_in_flight)),
        ("schema_version", json!(new.schema_version)),
    ]
}

async fn write(operator: &mut Operator, changes: &[Change], wanted: &[Wanted], dry_run: bool) -> anyhow::Result<()> {
    operator.begin().await?;
    for change in changes {
        let name = &change.subscription;
        if change.change == "remove" {
            operator.remove_subscription(name).await.with_context(|| format!("subscription {name}"))?;
        } else if let Some(new) = wanted.iter().find(|new| new.name == *name) {
            operator.subscribe(&serde_json::to_value(new)?).await.with_context(|| format!("subscription {name}"))?;
        }
    }
    operator.end(!dry_run).await?;
    Ok(())
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self.change {
            "create" => '+',
            "remove" => '-',
            _ => '~',
        };
        write!(f, "{sign} {}", self.subscription)?;
        for (field, (is, becomes)) in &self.fields {
            write!(f, "\n    {field}: {is} -> {becomes}")?;
        }
        Ok(())
    }
}

/// All subscriptions as SQL that makes them again.
pub(super) fn export(rows: &[Row]) -> anyhow::Result<()> {
    for row in rows.iter().filter(|row| row.sink != "handler") {
        print::raw(&statement(row))?;
    }
    Ok(())
}

fn statement(row: &Row) -> String {
    let mut arguments = vec![
        format!("name => {}", quoted(&row.name)),
        format!("topics => {}", list(&row.topics)),
        format!("sink => {}", quoted(&row.sink)),
    ];
    let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let mut add = |field: &str, value: Option<String>| arguments.extend(value.map(|value| format!("{field} => {value}")));
    add("config", (!is_empty(&row.config)).then(|| quoted(&row.config.to_string())));
    add("match", row.matching.as_deref().map(quoted));
    add("filter", row.filter.as_deref().map(quoted));
    add("transform", row.transform.as_deref().map(quoted));
    add("organization", row.organization.as_deref().map(quoted));
    add("keys", row.keys.as_deref().map(list));
    add("retry", (!is_empty(&row.retry)).then(|| quoted(&row.retry.to_string())));
    add("max_in_flight", row.max_in_flight.map(|limit| limit.to_string()));
    add("schema_version", row.schema_version.map(|version| version.to_string()));
    let pause = if row.active { String::new() } else { format!("select outbox.pause({});\n", quoted(&row.name)) };
    format!("select outbox.subscribe(\n    {}\n);\n{pause}", arguments.join(",\n    "))
}

/// As PostgreSQL reads it whatever `standard_conforming_strings` says.
fn quoted(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') { format!("E'{}'", doubled.replace('\\', "\\\\")) } else { format!("'{doubled}'") }
}

fn list(items: &[String]) -> String {
    format!("array[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
}
