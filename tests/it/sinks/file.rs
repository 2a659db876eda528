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

fn section(folder: &std::path::Path) -> String {
    format!("[sinks.file]\nfolder = {:?}", folder.to_str().unwrap())
}

impl Destination for Files {
    const KIND: &'static str = "file";

    async fn start() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn section(&self) -> String {
        section(self.folder.path())
    }

    fn nowhere() -> Option<Registry> {
        Some(registry(&section("/nonexistent/folder".as_ref())))
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

    async fn markers(&self) -> Vec<Option<String>> {
        let lines = std::fs::read_to_string(self.folder.path().join("events.jsonl")).unwrap_or_default();
        let header = |line: &str| {
            let whole: Value = serde_json::from_str(line).unwrap();
            assert!(whole["headers"]["traceparent"].is_string(), "{whole}");
            whole["headers"]["pgoutbox-replay"].as_str().map(ToOwned::to_owned)
        };
        lines.lines().map(header).collect()
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
async fn an_attempt_that_was_dropped_while_another_process_wrote_writes_nothing_later() {
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
    assert_eq!(ids, [deliveries[1].event.id.to_string()]);
}

#[tokio::test]
async fn a_file_that_another_process_has_locked_holds_up_no_other_and_ends_in_time() {
    let files = Files::start().await;
    let registry = files.registry();
    let locked = deliveries(&registry, "file", json!({ "path": "locked.jsonl" }), 1);
    let free = deliveries(&registry, "file", files.config(), 1);
    let other = std::fs::File::create(files.folder.path().join("locked.jsonl")).unwrap();
    other.lock().unwrap();
    // More than there are threads for, each of another subscription.
    let waiting = futures_util::future::join_all((0..40).map(|_| locked.outlet.send(&locked)));
    let others = async {
        for _ in 0..50 {
            let sent = tokio::time::timeout(Duration::from_secs(4), free.outlet.send(&free)).await;
            assert_eq!(sent.expect("at once")[0].outcome, Outcome::Delivered);
        }
    };
    let (waited, ()) = tokio::join!(tokio::time::timeout(Duration::from_secs(10), waiting), others);
    for reports in waited.expect("long before the deadline of the relay") {
        let expected = Outcome::Retry { reason: Reason::Timeout, after: None };
        assert_eq!((&reports[0].outcome, reports[0].ambiguous), (&expected, false), "{reports:?}");
    }
    other.unlock().unwrap();
    assert_eq!(locked.outlet.send(&locked).await[0].outcome, Outcome::Delivered);
}

#[test]
fn a_pipe_that_nobody_reads_holds_up_no_other() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (filled, again, others) = runtime.block_on(async {
        let files = Files::start().await;
        let pipe = files.folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        let registry = files.registry();
        let stalled = deliveries(&registry, "file", json!({ "path": "pipe", "sync": false }), 500);
        let free = deliveries(&registry, "file", files.config(), 1);
        let filling = async {
            for _ in 0..3 {
                stalled.outlet.send(&stalled).await;
            }
        };
        let filled = tokio::time::timeout(Duration::from_secs(1), filling).await;
        let again = tokio::time::timeout(Duration::from_secs(10), stalled.outlet.send(&stalled));
        let others = tokio::time::timeout(Duration::from_secs(4), free.outlet.send(&free));
        let (again, others) = tokio::join!(again, others);
        (made.success() && filled.is_err(), again, others)
    });
    // A thread is still in its write.
    runtime.shutdown_background();
    assert!(filled, "the pipe is full");
    assert_eq!(others.expect("at once")[0].outcome, Outcome::Delivered);
    assert_eq!(again.expect("in time")[0].outcome.reason(), Some(Reason::Timeout), "its turn does not come");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_although_the_file_is_moved_or_truncated_all_the_time() {
    let files = Files::start().await;
    let path = files.folder.path().join("events.jsonl");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (name, stopped) = (path.clone(), std::sync::Arc::clone(&stop));
    let rotator = std::thread::spawn(move || {
        let (mut archive, mut rounds) = (String::new(), 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) || rounds < 2 {
            let Ok(file) = std::fs::OpenOptions::new().read(true).write(true).open(&name) else { continue };
            file.lock().unwrap();
            rounds += 1;
            if rounds % 2 == 0 {
                let moved = name.with_extension("moved");
                std::fs::rename(&name, &moved).unwrap();
                archive.push_str(&std::fs::read_to_string(&moved).unwrap());
                std::fs::remove_file(&moved).unwrap();
            } else {
                archive.push_str(&std::fs::read_to_string(&name).unwrap());
                file.set_len(0).unwrap();
            }
        }
        archive
    });
    // Two relays.
    let sent = futures_util::future::join_all((0..2).map(async |_| {
        let deliveries =
            deliveries(&files.registry(), "file", json!({"path": "events.jsonl", "sync": false}), 2_000);
        for one in deliveries.chunks(1) {
            let outcome = &deliveries.outlet.send(one).await[0].outcome;
            assert_eq!(*outcome, Outcome::Delivered);
        }
        deliveries.iter().map(|one| one.event.id.to_string()).collect::<Vec<_>>()
    }))
    .await
    .concat();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    // The rotator may wait for the file to exist.
    let last = deliveries(&files.registry(), "file", files.config(), 1);
    while !rotator.is_finished() {
        last.outlet.send(&last).await;
    }
    let everywhere = rotator.join().unwrap() + &std::fs::read_to_string(&path).unwrap_or_default();
    let lost = sent.iter().filter(|id| !everywhere.contains(id.as_str())).count();
    assert_eq!(lost, 0, "of {}", sent.len());
    assert!(everywhere.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "whole lines only");
}

#[tokio::test]
async fn a_name_that_is_too_long_is_final_and_costs_the_others_nothing() {
    let files = Files::start().await;
    let mut deliveries = deliveries(&files.registry(), "file", json!({ "path": "{key}.jsonl" }), 3);
    for (delivery, key) in deliveries.iter_mut().zip(["a", &"k".repeat(300), "b"]) {
        std::sync::Arc::make_mut(&mut delivery.event).key = Some(key.to_owned());
    }
    let reports = deliveries.outlet.send(&deliveries).await;
    let outcomes: Vec<_> = reports.iter().map(|report| &report.outcome).collect();
    let rejected = Outcome::Rejected { reason: Reason::TemplateFailed };
    assert_eq!(outcomes, [&Outcome::Delivered, &rejected, &Outcome::Delivered], "{reports:?}");
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
