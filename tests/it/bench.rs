//! The benchmark prints every figure with its floor. Sizes are tiny: no test here measures speed.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::Value;

const ROWS: [(&str, usize); 20] = [
    ("webhook_drain", 2),
    ("noop_drain", 2),
    ("deep_backlog", 1),
    ("cost", 4),
    ("distant", 1),
    ("latency", 6),
    ("isolation", 6),
    ("publishers_tax", 4),
    ("fanout", 1),
    ("ordered", 1),
    ("matching", 14),
    ("held_transaction", 4),
    ("held_log", 1),
    ("partitions", 7),
    ("idle", 3),
    ("memory", 2),
    ("live_latency", 4),
    ("live_fanout", 2),
    ("live_memory", 1),
    ("sinks", SINKS),
];

/// Two figures for each kind that is compiled in.
const SINKS: usize = 2
    * (3 + cfg!(feature = "nats") as usize
        + cfg!(feature = "redis") as usize
        + cfg!(feature = "kafka") as usize
        + cfg!(feature = "amqp") as usize);

fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
    command.args(["bench", "--tiny"]).args(arguments).stdin(Stdio::null());
    command
}

#[test]
fn every_row_is_printed_with_its_floor() {
    let output = bench(&["--json"]).output().unwrap();
    let (printed, logged) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}\n{logged}");
    let mut lines = printed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());

    let machine = lines.next().unwrap()["machine"].take();
    assert_eq!(machine["postgres"]["fsync"], "on");
    assert!(machine["cores"].as_u64().unwrap() > 0 && machine["permits"].as_u64().unwrap() > 0, "{machine}");

    let figures: Vec<Value> = lines.collect();
    for figure in &figures {
        for number in ["value", "floor", "min", "max"] {
            assert!(figure[number].as_f64().is_some_and(|number| number >= 0.0), "{number} of {figure}");
        }
        assert!(
            figure["ratio"].as_f64().is_some_and(|ratio| ratio > 0.0)
                || figure["unit"] == "rows"
                || figure["row"] == "cost"
                || figure["row"] == "idle",
            "{figure}"
        );
    }
    let counted = ROWS.map(|(row, _)| (row, figures.iter().filter(|figure| figure["row"] == row).count()));
    assert_eq!(counted, ROWS);
}

#[test]
fn the_table_describes_each_floor() {
    let output = bench(&["--only", "noop_drain"]).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.lines().filter(|line| line.starts_with("noop_drain ")).count(), 2, "{printed}");
    assert!(printed.contains("    floor: PostgreSQL alone"), "{printed}");
}

#[test]
fn an_interrupted_benchmark_leaves_nothing_behind() {
    let mut child = bench(&["--only", "held_transaction", "--held", "60s"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let prefix = format!("pgoutbox-postgres-{}-", child.id());
    let directories = || {
        let entries = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
        entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)).count()
    };
    let mut logged = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(logged.any(|line| line == "measuring held_transaction"));
    assert_eq!(directories(), 1);

    assert!(
        Command::new("sh")
            .args(["-c", "kill -s INT \"$0\"", &child.id().to_string()])
            .status()
            .unwrap()
            .success()
    );
    let rest: Vec<String> = logged.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");
    assert_eq!(directories(), 0);
}
