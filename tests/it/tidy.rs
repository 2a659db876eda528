//! Rules of rooms, files and lines that a text search can check, and the list of promises.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// All files in a folder whose names end with `end`, with their text.
pub(crate) fn files(folder: &str, end: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.to_str().unwrap().ends_with(end) {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(!found.is_empty(), "{folder} holds files that end in {end}");
    found
}

/// The code of a file, without comments and unit tests.
pub(crate) fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn assert_never(room: &[&str], words: &[&str], why: &str) {
    let all = files("src", ".rs");
    let within: Vec<_> = all
        .iter()
        .filter(|(name, _)| !name.ends_with("/tests.rs") && room.iter().any(|part| name.starts_with(part)))
        .collect();
    assert!(within.len() >= room.len(), "each of {room:?} is a room");
    for (name, text) in within {
        for (number, line) in code(text).lines().enumerate() {
            for word in words {
                assert!(
                    !line.contains(word),
                    "{name} must never contain {word:?}: {why}\nline {} of its code: {line}",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn every_file_opens_with_its_purpose() {
    for folder in ["src", "tests/it"] {
        for (name, text) in files(folder, ".rs") {
            assert!(text.starts_with("//! "), "{name} should open with //! and a sentence");
        }
    }
    for (name, text) in files("migrations", ".sql") {
        assert!(text.starts_with("-- "), "{name} should open with a comment");
    }
}

#[test]
fn the_stages_contain_no_sql() {
    let words = [
        "sqlx::query",
        "include_str!(",
        "sql!(",
        "\"select ",
        "\"update ",
        "\"insert ",
        "\"delete ",
        "\"begin",
        "\"commit",
        "fetch_one",
        "fetch_all",
    ];
    // The listener has its own connection, for LISTEN and two locks.
    let stages: Vec<String> = files("src/relay", ".rs")
        .into_keys()
        .filter(|name| !name.ends_with("/await_work/listening.rs") && !name.ends_with("/tests.rs"))
        .collect();
    assert_never(
        &stages.iter().map(String::as_str).collect::<Vec<_>>(),
        &words,
        "statements belong into sql/ and are run by store",
    );
}

#[test]
fn the_stages_open_no_socket_and_know_no_kind_of_sink() {
    let words = ["hyper", "TcpStream", "TcpListener", "UdpSocket", "webhook", "Webhook", "redis", "kafka"];
    assert_never(&["src/relay/"], &words, "an outlet is all that a stage sees of a destination");
}

#[test]
fn no_output_ends_the_program_when_it_cannot_be_written() {
    assert_never(&["src/"], &["println!", "eprint!", "dbg!"], "it panics; see cli/print.rs");
}

#[test]
fn the_pure_rooms_are_pure() {
    let words = [
        ".await",
        "async ",
        "tracing::",
        "println!",
        "Instant::now",
        "SystemTime",
        "Utc::now",
        "rand::",
        "sqlx",
        "std::env",
        "std::fs",
    ];
    assert_never(
        &["src/event/topic.rs", "src/event/filter/", "src/event/types/schema.rs", "src/delivery/"],
        &words,
        "they use only their arguments",
    );
}

#[test]
fn sinks_neither_wait_nor_log_nor_count_nor_know_the_outbox() {
    let words = [
        "tracing::",
        "sqlx",
        "time::sleep",
        "tokio::spawn",
        "telemetry",
        "crate::store",
        "crate::relay",
        "outbox.",
    ];
    // Two exceptions: one settles its deliveries itself, the destination of the other is PostgreSQL.
    let (own, foreign) = ("src/sinks/function/", "src/sinks/postgres/mod.rs");
    let plain: Vec<String> = files("src/sinks", ".rs")
        .into_keys()
        .filter(|name| {
            !name.starts_with(own)
                && name != foreign
                && name != "src/sinks/mod.rs"
                && !name.ends_with("tests.rs")
        })
        .collect();
    assert_never(
        &plain.iter().map(String::as_str).collect::<Vec<_>>(),
        &words,
        "a sink makes one attempt and reports",
    );
    assert_never(
        &[own, foreign],
        &["tracing::", "time::sleep", "tokio::spawn", "telemetry", "crate::relay"],
        "a sink makes one attempt and reports",
    );
}

#[test]
fn only_config_and_secret_read_settings_from_the_environment() {
    for (name, text) in files("src", ".rs") {
        let reads = code(&text).contains("env::var");
        // The last three read PATH, variables of the terminal, and where a test ends the process.
        let may = [
            "src/cli/config",
            "src/sink/secret.rs",
            "src/lab/private_postgres",
            "src/lab/demo/screen.rs",
            "src/relay/crash.rs",
        ];
        let may = may.iter().any(|part| name.starts_with(part));
        assert!(may || !reads, "{name} reads the environment; only config and secret do");
    }
}

/// A transaction pooler gives a session to one relay after the other: a prepared statement of the first is in
/// the way of the second.
#[test]
fn each_query_of_store_and_admin_says_whether_it_stays_prepared() {
    let (store, admin) = (files("src/store", ".rs"), files("src/admin", ".rs"));
    for (name, text) in store.into_iter().chain(admin) {
        let text = code(&text);
        let made = ["sqlx::query(", "sqlx::query_as", "sqlx::query_scalar"];
        let queries: usize = made.iter().map(|made| text.matches(made).count()).sum();
        let said = text.matches(".persistent(").count();
        assert!(said >= queries, "{name}: {said} of {queries} queries say `.persistent(…)`");
    }
}

#[test]
fn every_statement_is_used_exactly_once() {
    // The benchmark runs statements of the relay too, to measure a floor.
    let source: String = files("src", ".rs")
        .iter()
        .filter(|(name, _)| !name.starts_with("src/lab/bench/"))
        .map(|(_, text)| code(text))
        .collect();
    for name in files("sql", ".sql").into_keys().filter(|name| name != "sql/schema.sql") {
        let word = name.trim_start_matches("sql/").trim_end_matches(".sql");
        let uses = source.matches(&format!("sql!(\"{word}\")")).count();
        assert_eq!(uses, 1, "{name} should be used in exactly one place");
    }
}

#[test]
fn no_file_is_longer_than_four_hundred_lines_without_a_reason() {
    let reasons = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap_or_default();
    for folder in ["src", "tests/it"] {
        for (name, text) in files(folder, ".rs") {
            let lines = text.lines().count();
            assert!(
                lines <= 450 || reasons.contains(&format!("`{name}`")),
                "{name} has {lines} lines; give the reason in ARCHITECTURE.md"
            );
        }
    }
    for line in reasons.lines().filter(|line| line.contains("is long for")) {
        let name = line.split('`').nth(1).unwrap_or_default();
        let lines = fs::read_to_string(root().join(name)).unwrap_or_default().lines().count();
        assert!(lines > 450, "ARCHITECTURE.md calls {name} long, which has {lines} lines");
    }
}

#[test]
fn every_promise_names_a_test_that_exists() {
    // Without the file there are no promises.
    let Ok(text) = fs::read_to_string(root().join("ARCHITECTURE.md")) else { return };
    for name in text.split('`').skip(1).step_by(2).filter_map(|word| word.rsplit_once("::")) {
        let (file, test) = name;
        let is_name = |word: &str| {
            !word.is_empty()
                && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        };
        let path = root().join(format!("tests/it/{}.rs", file.replace("::", "/")));
        if !file.split("::").all(is_name) || !is_name(test) || !(test.contains('_') || Path::exists(&path)) {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap_or_else(|_| {
            panic!("ARCHITECTURE.md names `{file}::{test}`; there is no tests/it/{file}.rs")
        });
        let there = ["(", "<"].iter().any(|next| source.contains(&format!("fn {test}{next}")));
        assert!(there, "ARCHITECTURE.md names `{file}::{test}`; tests/it/{file}.rs has no such test");
    }
}
