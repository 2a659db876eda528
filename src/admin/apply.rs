//! Subscriptions as a declared list: compare it with the database, apply it in one transaction, and export a
//! database's subscriptions as SQL.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};

use super::{Error, Operator, ask, statement::statement};
use crate::{
    event::{
        JsonText,
        filter::{Filter, Transform},
        harmless::is_harmless,
    },
    store::{Coalesce, OnExhausted, Ordering, SubscriptionRow},
};

/// A declared subscription: the parameters of `outbox.subscribe`. `J` is how values of JSON are kept.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[cfg_attr(feature = "cli", derive(utoipa::ToSchema), schema(bound = "J: utoipa::ToSchema"))]
#[serde(deny_unknown_fields, bound(deserialize = "J: Deserialize<'de>"))]
#[non_exhaustive]
pub struct SubscriptionSpec<J = JsonText> {
    /// Unique name.
    pub name: String,
    /// Topic patterns of the events it receives.
    pub topics: Vec<String>,
    /// Kind of sink.
    pub sink: String,
    /// Configuration for the sink: an object; none: without fields.
    #[serde(skip_serializing_if = "Option::is_none", default = "none", deserialize_with = "present")]
    #[cfg_attr(feature = "cli", schema(value_type = JsonText, required = false))]
    pub config: Option<J>,
    /// JSON that the payload must contain.
    #[serde(
        rename = "match",
        skip_serializing_if = "Option::is_none",
        default = "none",
        deserialize_with = "present"
    )]
    #[cfg_attr(feature = "cli", schema(value_type = JsonText, required = false))]
    pub matching: Option<J>,
    /// CEL expression that an event must satisfy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// CEL expression that makes the payload to be sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<String>,
    /// Tenant whose events it receives; none for every organization.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub organization: Option<String>,
    /// Order of deliveries: `none` or `key`; none: `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ordering: Option<String>,
    /// What happens to a key when its event becomes a dead letter: `skip`, `park` or `halt`; none: `skip`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exhausted: Option<String>,
    /// Whether only the newest waiting event of a key is sent: `none` or `key`; none: `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coalesce: Option<String>,
    /// Most deliveries in a time, such as `50/s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// Retry policy: an object; none: the defaults.
    #[serde(skip_serializing_if = "Option::is_none", default = "none", deserialize_with = "present")]
    #[cfg_attr(feature = "cli", schema(value_type = JsonText, required = false))]
    pub retry: Option<J>,
    /// Prefixes of keys; an event must have a key that begins with one of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<Vec<String>>,
    /// Most deliveries in flight at once in one relay.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<i32>,
    /// Schema version that payloads are upcast to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_version: Option<i32>,
    /// First event: `beginning` or a time. Used only when the subscription is created.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
}

/// What a field is that is not there. (`Default` would ask it of `J`.)
fn none<J>() -> Option<J> {
    None
}

/// A field that is there, although it may be null: JSON's null is a value that `match` may have.
fn present<'de, J: Deserialize<'de>, D: Deserializer<'de>>(field: D) -> Result<Option<J>, D::Error> {
    J::deserialize(field).map(Some)
}

impl From<SubscriptionSpec<Value>> for SubscriptionSpec {
    fn from(spec: SubscriptionSpec<Value>) -> Self {
        Self {
            name: spec.name,
            topics: spec.topics,
            sink: spec.sink,
            config: spec.config.map(Into::into),
            matching: spec.matching.map(Into::into),
            filter: spec.filter,
            transform: spec.transform,
            organization: spec.organization,
            ordering: spec.ordering,
            on_exhausted: spec.on_exhausted,
            coalesce: spec.coalesce,
            rate: spec.rate,
            retry: spec.retry.map(Into::into),
            keys: spec.keys,
            max_in_flight: spec.max_in_flight,
            schema_version: spec.schema_version,
            start: spec.start,
        }
    }
}

impl From<&SubscriptionRow> for SubscriptionSpec {
    fn from(row: &SubscriptionRow) -> Self {
        let row = row.clone();
        Self {
            name: row.name,
            topics: row.topics,
            sink: row.sink,
            config: Some(row.config),
            matching: row.matching,
            filter: row.filter,
            transform: row.transform,
            organization: row.organization,
            ordering: Some(row.ordering.code().to_owned()),
            on_exhausted: Some(row.on_exhausted.code().to_owned()),
            coalesce: Some(row.coalesce.code().to_owned()),
            rate: row.rate,
            retry: Some(row.retry),
            keys: row.keys,
            max_in_flight: row.max_in_flight,
            schema_version: row.schema_version,
            start: None,
        }
    }
}

/// A mistake in a list of subscriptions, found before anything is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("subscription {subscription}: {problem}")]
pub struct SpecError {
    /// Name of the subscription.
    pub subscription: String,
    /// Message that names the field.
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
    /// For [`ChangeKind::Change`]: each field with its current and its new value.
    pub fields: BTreeMap<&'static str, (JsonText, JsonText)>,
}

/// What happens to a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ChangeKind {
    /// It is created.
    Create,
    /// Some of its fields change.
    Change,
    /// It is deleted together with its pending deliveries.
    Remove,
}

/// Checks a list for duplicate names and expressions that do not compile.
///
/// # Errors
/// The first mistake.
pub fn check_specs(specs: &[SubscriptionSpec]) -> Result<(), SpecError> {
    let mut names = HashSet::new();
    for spec in specs {
        let refuse = |problem: String| Err(SpecError { subscription: spec.name.clone(), problem });
        if !names.insert(&spec.name) {
            return refuse("it is in the file twice".to_owned());
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

/// The changes that make the database's rows equal to the list. With `prune`, subscriptions that are not
/// listed are removed, except those of handlers, which belong to programs.
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
                let fields: BTreeMap<_, _> = fields(&SubscriptionSpec::from(*row))
                    .into_iter()
                    .zip(fields(spec))
                    .filter(|((_, old), (_, new))| old != new)
                    .map(|((field, old), (_, new))| (field, (old, new)))
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

/// The fields that are compared. Those of JSON are as `jsonb` holds them.
fn fields(spec: &SubscriptionSpec) -> [(&'static str, JsonText); 15] {
    let word = |word: &Option<String>, default: &str| json!(word.as_deref().unwrap_or(default)).into();
    let object = |value: &Option<JsonText>| value.clone().unwrap_or_else(|| json!({}).into());
    [
        ("topics", json!(spec.topics).into()),
        ("sink", json!(spec.sink).into()),
        ("config", object(&spec.config)),
        ("match", spec.matching.clone().unwrap_or_else(|| Value::Null.into())),
        ("filter", json!(spec.filter).into()),
        ("transform", json!(spec.transform).into()),
        ("organization", json!(spec.organization).into()),
        ("keys", json!(spec.keys).into()),
        ("ordering", word(&spec.ordering, Ordering::None.code())),
        ("on_exhausted", word(&spec.on_exhausted, OnExhausted::Skip.code())),
        ("coalesce", word(&spec.coalesce, Coalesce::None.code())),
        ("rate", json!(spec.rate).into()),
        ("retry", object(&spec.retry)),
        ("max_in_flight", json!(spec.max_in_flight).into()),
        ("schema_version", json!(spec.schema_version).into()),
    ]
}

impl Operator {
    /// Creates a subscription, and changes none. Returns its id; none if there is one of this name.
    ///
    /// # Errors
    /// Those of [`Operator::subscribe`], and a lock timeout while others write subscriptions.
    pub async fn create_subscription(&mut self, spec: &SubscriptionSpec) -> Result<Option<i64>, Error> {
        self.begin().await?;
        let made = self.create_alone(spec).await;
        let ended = self.end(made.is_ok()).await;
        let id = made?;
        ended.map(|()| id)
    }

    async fn create_alone(&mut self, spec: &SubscriptionSpec) -> Result<Option<i64>, Error> {
        // Until the end of the transaction nobody else makes one.
        let lock = "lock table outbox.subscriptions in share row exclusive mode";
        ask("locking subscriptions", statement(lock).execute(&mut self.connection)).await?;
        let is_new = self.list_subscriptions(Some(&spec.name)).await?.is_empty();
        if is_new { self.subscribe(spec).await.map(Some) } else { Ok(None) }
    }

    /// Makes these changes in one transaction. Unless `keep` is set, the transaction is rolled back at the
    /// end: a dry run that finds what PostgreSQL refuses.
    ///
    /// # Errors
    /// The subscription that was refused, with the database's error. Nothing is changed then.
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
                (ChangeKind::Create | ChangeKind::Change, Some(spec)) => self.subscribe(spec).await.map(drop),
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
    /// The subscription that was refused; none if the transaction itself failed.
    pub subscription: Option<String>,
    /// Error of the database.
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
        for (field, (old, new)) in &self.fields {
            write!(f, "\n    {field}: {old} -> {new}")?;
        }
        Ok(())
    }
}

/// SQL that creates a subscription like this row, and pauses it if it is paused.
#[must_use]
pub fn subscribe_statement(row: &SubscriptionRow) -> String {
    let mut arguments = vec![
        format!("name => {}", quoted(&row.name)),
        format!("topics => {}", array(&row.topics)),
        format!("sink => {}", quoted(&row.sink)),
    ];
    let mut add = |field: &str, value: Option<String>| {
        arguments.extend(value.map(|value| format!("{field} => {value}")))
    };
    add("config", (!row.config.is_empty_object()).then(|| quoted(row.config.as_str())));
    add("match", row.matching.as_ref().map(|text| quoted(text.as_str())));
    add("filter", row.filter.as_deref().map(quoted));
    add("transform", row.transform.as_deref().map(quoted));
    add("organization", row.organization.as_deref().map(quoted));
    add("keys", row.keys.as_deref().map(array));
    let word = |word: &'static str, default: &str| (word != default).then(|| quoted(word));
    add("ordering", word(row.ordering.code(), Ordering::None.code()));
    add("on_exhausted", word(row.on_exhausted.code(), OnExhausted::Skip.code()));
    // A word of SQL, so the name of the parameter is quoted.
    add("\"coalesce\"", word(row.coalesce.code(), Coalesce::None.code()));
    add("rate", row.rate.as_deref().map(quoted));
    add("retry", (!row.retry.is_empty_object()).then(|| quoted(row.retry.as_str())));
    add("max_in_flight", row.max_in_flight.map(|limit| limit.to_string()));
    add("schema_version", row.schema_version.map(|version| version.to_string()));
    let pause =
        if row.active { String::new() } else { format!("select outbox.pause({});\n", quoted(&row.name)) };
    format!("select outbox.subscribe(\n    {}\n);\n{pause}", arguments.join(",\n    "))
}

/// A string literal that does not depend on `standard_conforming_strings`. What could control a terminal is
/// written by its number.
fn quoted(text: &str) -> String {
    let is_plain = |character: char| is_harmless(character) || "\n\t".contains(character);
    let doubled = text.replace('\'', "''");
    if doubled.chars().all(|character| is_plain(character) && character != '\\') {
        return format!("'{doubled}'");
    }
    let mut written = String::from("E'");
    for character in doubled.chars() {
        match character {
            '\\' => written.push_str("\\\\"),
            _ if is_plain(character) => written.push(character),
            _ => written.push_str(&format!("\\U{:08x}", u32::from(character))),
        }
    }
    written + "'"
}

fn array(items: &[String]) -> String {
    format!("array[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
}
