//! The file sink with a temporary folder.

use std::time::Duration;

use pgoutbox::{
    delivery::{Outcome, Reason},
    sink::Registry,
};
use serde_json::{Value, json};

use crate::{
    sink_contract::Destination,
    support::deliveries::{deliveries, registry},
};

/// A temporary folder.
pub(crate) struct Files {
    folder: tempfile::TempDir,
}

fn registry_of(folder: &std::path::Path) -> Registry {
    registry(&format!("[sinks.file]\nfolder = {:?}", folder.to_str().unwrap()))
}

impl Destination for Files {
    const KIND: &'static str = "file";

    async fn start() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn registry(&self) -> Registry {
        registry_of(self.folder.path())
    }

    fn nowhere() -> Option<Registry> {
        Some(registry_of("/nonexistent/folder".as_ref()))
    }

    fn config(&self) -> Value {
        json!({ "path": "events.jsonl" })
    }

    async fn received(&self) -> Vec<(String, String)> {
        let lines = std::fs::read_to_string(self.folder.path().join("events.jsonl")).unwrap_or_default();
        lines
            .lines()
            .map(|line| {
                let fields: std::collections::HashMap<String, &serde_json::value::RawValue> =
                    serde_json::from_str(line).unwrap();
                (fields["id"].get().trim_matches('"').to_owned(), fields["payload"].get().to_owned())
            })
            .collect()
    }

    fn refused() -> Vec<(Value, &'static str)> {
        vec![
            (json!({}), "path"),
            (json!({ "path": "../events" }), "path"),
            (json!({ "path": "/etc/passwd" }), "path"),
            (json!({ "path": "{tenant}" }), "tenant"),
        ]
    }
}

#[tokio::test]
async fn a_file_that_was_moved_away_is_created_again() {
    let files = Files::start().await;
    let deliveries = deliveries(&files.registry(), "file", files.config(), 2);
    let path = files.folder.path().join("events.jsonl");
    let outlet = &deliveries.outlet;
    outlet.send(&deliveries[..1]).await;
    std::fs::rename(&path, path.with_extension("1")).unwrap();
    outlet.send(&deliveries[1..]).await;
    let ids: Vec<_> = files.received().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [deliveries[1].event.id.to_string()]);
}

#[tokio::test]
async fn a_full_disk_is_a_retry_with_its_reason_and_the_next_attempt_writes_whole_lines() {
    let files = Files::start().await;
    let deliveries = deliveries(&files.registry(), "file", files.config(), 3);
    let outlet = &deliveries.outlet;
    let path = files.folder.path().join("events.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    for report in outlet.send(&deliveries).await {
        assert_eq!(
            report.outcome,
            Outcome::Retry { reason: Reason::DestinationFull, after: None },
            "{report:?}"
        );
    }
    std::fs::remove_file(&path).unwrap();
    outlet.send(&deliveries).await;
    assert_eq!(files.received().await.len(), 3);
}

#[tokio::test]
async fn half_a_line_of_a_killed_relay_is_not_joined_with_the_next() {
    let files = Files::start().await;
    let deliveries = deliveries(&files.registry(), "file", files.config(), 1);
    let path = files.folder.path().join("events.jsonl");
    std::fs::write(&path, "{}\n{\"id\": \"half").unwrap();
    deliveries.outlet.send(&deliveries).await;
    let lines = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<_> = lines.lines().collect();
    assert_eq!(lines[..2], ["{}", "{\"id\": \"half"]);
    assert!(lines[2].contains(&deliveries[0].event.id.to_string()), "{lines:?}");
}

#[tokio::test]
async fn a_write_of_a_dropped_attempt_completes_before_the_next() {
    let files = Files::start().await;
    let deliveries = deliveries(&files.registry(), "file", files.config(), 2);
    let outlet = &deliveries.outlet;
    // Another relay is writing.
    let other = std::fs::File::create(files.folder.path().join("events.jsonl")).unwrap();
    other.lock().unwrap();
    let given_up = tokio::time::timeout(Duration::from_millis(200), outlet.send(&deliveries[..1])).await;
    assert!(given_up.is_err(), "{given_up:?}");
    assert!(files.received().await.is_empty(), "it does not write while the other does");
    other.unlock().unwrap();
    assert_eq!(outlet.send(&deliveries[1..]).await[0].outcome, Outcome::Delivered);
    let ids: Vec<_> = files.received().await.into_iter().map(|(id, _)| id).collect();
    assert_eq!(ids, deliveries.iter().map(|delivery| delivery.event.id.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_file_that_cannot_be_written_stops_no_other() {
    let files = Files::start().await;
    let destination = |path: &str| {
        files.registry().bind("file", &json!({ "path": path })).unwrap().destination().unwrap().to_string()
    };
    assert_ne!(destination("orders.jsonl"), destination("payments.jsonl"));
    assert_eq!(destination("{topic}.jsonl"), destination("{topic}.jsonl"));
}
