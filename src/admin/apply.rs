//! Subscriptions as a list that is to be true: what differs from the database, and making it so in one transaction. And the
//! other way: SQL that makes the subscriptions of a database again.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Error, Operator};
use crate::{
    event::filter::{Filter, Transform},
    store::SubscriptionRow,
};

/// A subscription as it should be: the parameters of `outbox.subscribe`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct SubscriptionSpec {
    /// Its name.
    pub name: String,
    /// Topic patterns.
    pub topics: Vec<String>,
    /// Kind of sink.
    pub sink: String,
    /// For the sink; an object.
    #[serde(default = "empty")]
    pub config: Value,
    /// JSON that the payload must contain.
    #[serde(rename = "match")]
    pub matching: Option<Value>,
    /// A CEL expression.
    pub filter: Option<String>,
    /// A CEL expression.
    pub transform: Option<String>,
    /// The tenant; none: every organization.
    pub organization: Option<String>,
    /// `none`.
    pub ordering: Option<String>,
    /// Retry policy; an object.
    #[serde(default = "empty")]
    pub retry: Value,
    /// Prefixes of keys.
    pub keys: Option<Vec<String>>,
    /// Deliveries in flight at once for each relay.
    pub max_in_flight: Option<i32>,
    /// The version that payloads are brought to.
    pub schema_version: Option<i32>,
    /// `beginning` or a time; counts only when the subscription is made.
    pub start: Option<String>,
}

fn empty() -> Value {
    json!({})
}

/// What is wrong with a list of subscriptions, found before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subscription {subscription}: {problem}")]
pub struct SpecError {
    /// Its name.
    pub subscription: String,
    /// Names the field and says what is wrong.
    pub problem: String,
}

/// One difference between a list and the database.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Name of the subscription.
    pub subscription: String,
    /// What happens to it.
    #[serde(rename = "change")]
    pub kind: ChangeKind,
    /// For a change: the fields, with what they are and what they become.
    pub fields: BTreeMap<&'static str, (Value, Value)>,
}

/// What happens to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is made.
    Create,
    /// Some of its fields change.
    Change,
    /// It is deleted, and what it is still owed with it.
    Remove,
}

/// Checks a list: names that stand twice, and expressions that do not compile.
///
/// # Errors
/// The first mistake.
pub fn check_specs(specs: &[SubscriptionSpec]) -> Result<(), SpecError> {
    let mut names = HashSet::new();
    for spec in specs {
        let refuse = |problem: String| Err(SpecError { subscription: spec.name.clone(), problem });
        if !names.insert(&spec.name) {
            return refuse("it stands in the file twice".to_owned());
        }
        if let Some(Err(problem)) = spec.filter.as_deref().map(Filter::compile) {
            return refuse(format!("filter: {problem}"));
        }
        if let Some(Err(problem)) = spec.transform.as_deref().map(Transform::compile) {
            return refuse(format!("transform: {problem}"));
        }
    }
    Ok(())
}

/// What must change so that the database's rows are as listed. `prune`: subscriptions that are not listed are removed, but for
/// handlers, which belong to programs.
#[must_use]
pub fn compare(rows: &[SubscriptionRow], specs: &[SubscriptionSpec], prune: bool) -> Vec<Change> {
    let existing: BTreeMap<&str, &SubscriptionRow> =
        rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let mut changes = Vec::new();
    for spec in specs {
        let change = |kind, fields| Change { subscription: spec.name.clone(), kind, fields };
        match existing.get(spec.name.as_str()) {
            None => changes.push(change(ChangeKind::Create, BTreeMap::new())),
            Some(row) => {
                let fields: BTreeMap<_, _> = fields_of_row(row)
                    .into_iter()
                    .zip(fields_of_spec(spec))
                    .filter(|((_, is), (_, becomes))| is != becomes)
                    .map(|((field, is), (_, becomes))| (field, (is, becomes)))
                    .collect();
                if !fields.is_empty() {
                    changes.push(change(ChangeKind::Change, fields));
                }
            }
        }
    }
    if prune {
        let listed: HashSet<_> = specs.iter().map(|spec| spec.name.as_str()).collect();
        let unlisted = rows.iter().filter(|row| row.sink != "handler" && !listed.contains(row.name.as_str()));
        changes.extend(unlisted.map(|row| Change {
            subscription: row.name.clone(),
            kind: ChangeKind::Remove,
            fields: BTreeMap::new(),
        }));
    }
    changes
}

/// The fields that are compared, of a row.
fn fields_of_row(row: &SubscriptionRow) -> [(&'static str, Value); 11] {
    let matching =
        row.matching.as_deref().map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or(Value::Null));
    [
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

/// The same, of a spec, in the same order.
fn fields_of_spec(spec: &SubscriptionSpec) -> [(&'static str, Value); 11] {
    [
        ("topics", json!(spec.topics)),
        ("sink", json!(spec.sink)),
        ("config", spec.config.clone()),
        ("match", spec.matching.clone().unwrap_or(Value::Null)),
        ("filter", json!(spec.filter)),
        ("transform", json!(spec.transform)),
        ("organization", json!(spec.organization)),
        ("keys", json!(spec.keys)),
        ("retry", spec.retry.clone()),
        ("max_in_flight", json!(spec.max_in_flight)),
        ("schema_version", json!(spec.schema_version)),
    ]
}

impl Operator {
    /// Makes these changes in one transaction. `keep` false: all of it is undone at the end, so that what PostgreSQL refuses is
    /// refused and nothing changes.
    ///
    /// # Errors
    /// The subscription that was refused, with the database's error; nothing is changed then.
    pub async fn apply(
        &mut self,
        changes: &[Change],
        specs: &[SubscriptionSpec],
        keep: bool,
    ) -> Result<(), ApplyError> {
        let whole = |source| ApplyError { subscription: None, source };
        self.begin().await.map_err(whole)?;
        for Change { subscription, kind, .. } in changes {
            let done = match (kind, specs.iter().find(|spec| spec.name == *subscription)) {
                (ChangeKind::Remove, _) => self.remove_subscription(subscription).await.map(drop),
                (ChangeKind::Create | ChangeKind::Change, Some(spec)) => {
                    self.subscribe(&json!(spec)).await.map(drop)
                }
                (ChangeKind::Create | ChangeKind::Change, None) => Ok(()),
            };
            done.map_err(|source| ApplyError { subscription: Some(subscription.clone()), source })?;
        }
        self.end(keep).await.map_err(whole)
    }
}

/// Why a list was not applied.
#[derive(Debug, thiserror::Error)]
pub struct ApplyError {
    /// The subscription that was refused; `None`: the transaction as a whole.
    pub subscription: Option<String>,
    /// What the database said.
    pub source: Error,
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.subscription {
            Some(name) => write!(f, "subscription {name}"),
            None => f.write_str("applying subscriptions"),
        }
    }
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self.kind {
            ChangeKind::Create => '+',
            ChangeKind::Remove => '-',
            ChangeKind::Change => '~',
        };
        write!(f, "{sign} {}", self.subscription)?;
        for (field, (is, becomes)) in &self.fields {
            write!(f, "\n    {field}: {is} -> {becomes}")?;
        }
        Ok(())
    }
}

/// A statement that makes a subscription again, and pauses it where it is paused.
#[must_use]
pub fn subscribe_statement(row: &SubscriptionRow) -> String {
    let mut arguments = vec![
        format!("name => {}", quoted(&row.name)),
        format!("topics => {}", array(&row.topics)),
        format!("sink => {}", quoted(&row.sink)),
    ];
    let is_empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let mut add = |field: &str, value: Option<String>| {
        arguments.extend(value.map(|value| format!("{field} => {value}")))
    };
    add("config", (!is_empty(&row.config)).then(|| quoted(&row.config.to_string())));
    add("match", row.matching.as_deref().map(quoted));
    add("filter", row.filter.as_deref().map(quoted));
    add("transform", row.transform.as_deref().map(quoted));
    add("organization", row.organization.as_deref().map(quoted));
    add("keys", row.keys.as_deref().map(array));
    add("retry", (!is_empty(&row.retry)).then(|| quoted(&row.retry.to_string())));
    add("max_in_flight", row.max_in_flight.map(|limit| limit.to_string()));
    add("schema_version", row.schema_version.map(|version| version.to_string()));
    let pause =
        if row.active { String::new() } else { format!("select outbox.pause({});\n", quoted(&row.name)) };
    format!("select outbox.subscribe(\n    {}\n);\n{pause}", arguments.join(",\n    "))
}

/// A literal that PostgreSQL reads alike whatever `standard_conforming_strings` says.
fn quoted(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

fn array(items: &[String]) -> String {
    format!("array[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
}
