//! Names of the schema, metrics and settings in the documents exist.

use std::{collections::BTreeSet, fs};

use pgoutbox::relay::telemetry::METRICS;
use regex::Regex;

use super::{documents, pgoutbox, root};

/// The schema, and the SQL for the inbox of another database.
fn schema() -> String {
    format!("{}{}", fs::read_to_string(root().join("sql/schema.sql")).unwrap(), pgoutbox(&["inbox"]))
}

#[test]
fn every_function_and_table_of_the_schema_that_is_named_exists() {
    let schema = schema();
    let functions = Regex::new(r"(?i)function outbox\.([a-z_]+)\(").unwrap();
    let functions: BTreeSet<&str> =
        functions.captures_iter(&schema).map(|found| found.extract::<1>().1[0]).collect();
    let names = Regex::new(r"\boutbox(?:_internal)?\.([a-z_]+)").unwrap();
    let known: BTreeSet<&str> = names.captures_iter(&schema).map(|found| found.extract::<1>().1[0]).collect();
    let used = Regex::new(r"\boutbox\.([a-z_]+)(\(?)").unwrap();
    for page in documents() {
        for (number, line) in page.text.lines().enumerate() {
            for (_, [name, bracket]) in used.captures_iter(line).map(|found| found.extract()) {
                // Debezium's router writes to topics that begin with outbox.event.
                let exists = if name == "event" {
                    line.contains("outbox.event.")
                } else if bracket == "(" {
                    functions.contains(name) || name == "inbox"
                } else {
                    known.contains(name)
                };
                assert!(exists, "{}, line {}: there is no outbox.{name}{bracket}", page.name, number + 1);
            }
        }
    }
}

#[test]
fn every_metric_that_is_named_exists() {
    let used = Regex::new(r"\bpgoutbox_[a-z_]+").unwrap();
    for page in documents() {
        for name in used.find_iter(&page.text).map(|found| found.as_str()) {
            let plain = ["_total", "_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .unwrap_or(name);
            let exists = METRICS.iter().any(|(metric, ..)| *metric == name || *metric == plain);
            assert!(exists, "{}: there is no metric {name}", page.name);
        }
    }
}

#[test]
fn every_setting_that_is_named_exists() {
    let mut section = "";
    let mut keys = BTreeSet::new();
    for line in pgoutbox::cli::config::MANUAL.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
        } else if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ") {
            keys.insert(format!("{section}.{key}"));
        }
    }
    let setting = Regex::new(
        r"^(?:database|relay|egress|secrets|http(?:\.jwt)?|realtime(?:\.nats)?|telemetry)\.[a-z_]+",
    )
    .unwrap();
    let variable = Regex::new(r"PGOUTBOX__([A-Z]+)__([A-Z_]*[A-Z])").unwrap();
    for page in documents() {
        for (line, span) in page.spans() {
            if let Some(found) = setting.find(&span) {
                assert!(
                    keys.contains(found.as_str()),
                    "{}, line {line}: there is no setting {}",
                    page.name,
                    found.as_str()
                );
            }
        }
        for (whole, [section, key]) in variable.captures_iter(&page.text).map(|found| found.extract()) {
            let name = format!("{section}.{key}").to_lowercase().replace("__", ".");
            assert!(keys.contains(&name) || name == "section.key", "{}: {whole} sets nothing", page.name);
        }
    }
}
