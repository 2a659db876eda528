//! The manual's tables and examples against the code.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::Database;

fn page(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// The page's sections by their headings.
fn sections(page: &str) -> Vec<(String, String)> {
    let mut sections: Vec<(String, String)> = Vec::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            sections.push((heading.to_owned(), String::new()));
        } else if let Some((_, text)) = sections.last_mut() {
            text.push_str(line);
            text.push('\n');
        }
    }
    sections
}

/// The blocks of one language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    text.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or("")).collect()
}

/// What stands in backticks at the beginning of a table's rows.
fn fields(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next().map(ToOwned::to_owned))
        .collect()
}

/// The fields a sink knows: it lists them when it refuses one.
fn known(refusal: &str) -> BTreeSet<String> {
    match refusal.split_once(" has ") {
        Some((_, list)) => list.split(", ").map(ToOwned::to_owned).collect(),
        // serde's words: expected one of `a`, `b`, or `a` or `b`.
        None => refusal
            .split_once("expected")
            .map_or("", |(_, list)| list)
            .split('`')
            .skip(1)
            .step_by(2)
            .map(ToOwned::to_owned)
            .collect(),
    }
}

#[tokio::test]
async fn the_table_of_each_sink_has_its_fields_and_no_other() {
    let registry = crate::sinks::every_sink();
    let sections = sections(&page("sinks.md"));
    let documented: BTreeSet<_> = sections.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(documented, registry.kinds().collect::<BTreeSet<_>>());
    for (kind, text) in &sections {
        let refusal =
            registry.bind(kind, &json!({ "no_such_field": 1, "url": "http://127.0.0.1/" })).unwrap_err();
        let known: BTreeSet<_> = known(refusal.as_str()).into_iter().collect();
        assert_eq!(fields(text), known, "the table of {kind} in docs/sinks.md; the sink said: {refusal}");
    }
}

#[tokio::test]
async fn the_example_of_each_sink_can_be_used() {
    let database = Database::new().await;
    let registry = crate::sinks::every_sink();
    for (kind, text) in sections(&page("sinks.md")) {
        for example in blocks(&text, "sql") {
            database
                .pool
                .execute(AssertSqlSafe(example.to_owned()))
                .await
                .unwrap_or_else(|error| panic!("{kind}: {error}\n{example}"));
        }
        for example in blocks(&text, "toml") {
            let example = example
                .lines()
                .filter(|line| !line.contains("\"env:") && !line.contains("\"file:"))
                .collect::<Vec<_>>()
                .join("\n");
            toml_parses(&kind, &example);
        }
    }
    let rows: Vec<(String, String, Value)> =
        sqlx::query_as("select name, sink, config from outbox.subscriptions")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let exercised: BTreeSet<_> = rows.iter().map(|(_, sink, _)| sink.as_str()).collect();
    let all: BTreeSet<_> = registry.kinds().filter(|kind| *kind != "handler").collect();
    assert_eq!(exercised, all);
    for (name, sink, config) in &rows {
        registry.bind(sink, config).map(drop).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
}

fn toml_parses(kind: &str, example: &str) {
    use figment::providers::Format as _;
    figment::Figment::from(figment::providers::Toml::string(example))
        .extract::<figment::value::Dict>()
        .unwrap_or_else(|error| panic!("{kind}: {error}"));
}
