//! The schema: its history, its result, and the checks it shares with the relay.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use pgoutbox::{delivery::RetryPolicy, event::topic::Pattern, store::schema};
use proptest::{
    prelude::{Just, Strategy},
    prop_oneof,
    strategy::ValueTree,
    test_runner::TestRunner,
};
use serde_json::{Value, json};
use sqlx::{Connection, Row};

use crate::support::{Database, database::server};

/// The schema as one text: the output of `pg_dump` without parts that depend on its version.
pub(crate) fn dump(database: &Database) -> String {
    let output = Command::new(server().programs().join("pg_dump"))
        .args([
            "--schema-only",
            "--schema=outbox",
            "--schema=outbox_internal",
            "--no-owner",
            "--dbname",
            &database.plain_url(),
        ])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim_end) {
        let ours = !line.starts_with("SET ")
            && !line.starts_with("SELECT pg_catalog.set_config")
            && !line.starts_with('\\');
        // "-- Name: …; Type: …" only repeats the next statement.
        let talk = line == "--"
            || line.starts_with("-- Name: ")
            || line.starts_with("-- Dumped ")
            || line.starts_with("-- PostgreSQL database dump");
        if ours && !talk && !(line.is_empty() && lines.last().is_none_or(|last| last.is_empty())) {
            lines.push(line);
        }
    }
    lines.join("\n").trim().to_owned() + "\n"
}

const HEADER: &str =
    "-- The schemas outbox and outbox_internal after all migrations, as pg_dump shows them: to be read.
-- A test keeps it true; after a change of migrations/: UPDATE_SCHEMA=1 cargo test --test it schema_sql
";

#[tokio::test]
async fn schema_sql_is_the_result_of_the_migrations() {
    // Other versions print the same schema in other words.
    if std::env::var_os("PGOUTBOX_TEST_POSTGRES").is_some() {
        return;
    }
    let database = Database::new().await;
    let text = format!("{HEADER}\n{}", dump(&database));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql/schema.sql");
    if std::env::var_os("UPDATE_SCHEMA").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    let difference = kept.lines().zip(text.lines()).find(|(kept, now)| kept != now);
    assert!(
        kept == text,
        "sql/schema.sql is not the result of the migrations; \
            after a change of migrations/ run UPDATE_SCHEMA=1 cargo test --test it schema_sql\n\
         first difference (kept, now): {difference:#?}"
    );
    database.drop().await;
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let database = Database::empty().await;
    assert_eq!(schema::run(&database.options).await.unwrap().len(), migrations().len());
    let before = (dump(&database), history(&database).await);
    assert_eq!(schema::run(&database.options).await.unwrap(), Vec::<String>::new());
    assert_eq!((dump(&database), history(&database).await), before);
    database.drop().await;
}

#[tokio::test]
async fn a_database_migrated_by_a_newer_version_is_refused_before_any_write() {
    let database = Database::new().await;
    database
        .execute(
            "insert into outbox.migrations (version, description, success, checksum, execution_time) values (9999, 'of the future', true, '', 0)",
        )
        .await;
    database
        .execute("create or replace view outbox.compatibility as select 9999::bigint as oldest_program")
        .await;
    let before = (dump(&database), history(&database).await);
    assert!(matches!(schema::run(&database.options).await, Err(schema::Error::Newer { version: 9999 })));
    let output = database.pgoutbox(&["migrate"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("migrated by a newer version (migration 9999)"),
        "{output:?}"
    );
    assert_eq!((dump(&database), history(&database).await), before);
    let pool = sqlx::PgPool::connect_lazy_with(database.relay_options.clone());
    let refusal = pgoutbox::Relay::builder(pool).build().await.unwrap_err();
    let why = pgoutbox::relay::telemetry::chain(&refusal);
    assert!(why.contains("newer version"), "{why}");
    database.drop().await;
}

#[tokio::test]
async fn the_printed_script_makes_the_same_schema_and_the_same_history() {
    let database = Database::empty().await;
    let script = database.pgoutbox(&["migrate", "--sql"]);
    assert!(script.status.success(), "{script:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), &script.stdout).unwrap();
    let applied = Command::new(server().programs().join("psql"))
        .args(["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", "-1", "-f"])
        .arg(file.path())
        .arg(database.plain_url())
        .output()
        .unwrap();
    assert!(applied.status.success(), "{applied:?}");
    let other = Database::new().await;
    assert_eq!(dump(&database), dump(&other));
    assert_eq!(
        schema::run(&database.options).await.unwrap(),
        Vec::<String>::new(),
        "what the script did should not be done again"
    );
    database.drop().await;
    other.drop().await;
}

pub(crate) fn migrations() -> Vec<(i64, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let names: BTreeSet<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let split = |name: &String| {
        let (number, what) = name.trim_end_matches(".sql").split_once('_').unwrap();
        (number.parse().unwrap(), what.replace('_', " "))
    };
    names.iter().map(split).collect()
}

pub(crate) async fn history(database: &Database) -> Vec<(i64, String)> {
    sqlx::query_as("select version, description from outbox.migrations order by version")
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

fn sample<T>(strategy: impl Strategy<Value = T>, count: usize) -> Vec<T> {
    let mut runner = TestRunner::deterministic();
    (0..count).map(|_| strategy.new_tree(&mut runner).unwrap().current()).collect()
}

/// Few words, so that patterns and topics often match, and all special characters of regular expressions.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => proptest::sample::select(vec!["a", "ab", "abc", "orders", "or", "x_1", "A"])
            .prop_map(str::to_owned),
        2 => r"[a-c+?()\[\]{}|^$\\/ éß漢-]{1,4}",
        1 => Just(String::new()),
    ]
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => segment(),
        2 => Just("*".to_owned()),
        2 => Just("**".to_owned()),
        2 => segment().prop_map(|prefix| prefix + "*"),
        1 => proptest::sample::select(vec!["***", "a*b", "*a", "a**", "a\u{7}"])
            .prop_map(str::to_owned),
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("."))
}

#[tokio::test]
async fn the_database_and_the_relay_accept_the_same_topic_patterns() {
    let database = Database::new().await;
    let mut patterns = sample(pattern(), 3_000);
    patterns.extend([
        "a".repeat(255),
        "a".repeat(256),
        "é".repeat(255),
        "é".repeat(256),
        String::new(),
        ".".into(),
        "a.".into(),
        "\n".into(),
    ]);
    let rows = sqlx::query(
        "select pattern, outbox_internal.topic_pattern_is_valid(pattern) as valid \
           from unnest($1::text[]) as pattern",
    )
    .bind(&patterns)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let mut seen = [0, 0];
    for row in rows {
        let (pattern, valid): (String, bool) = (row.get(0), row.get(1));
        let parsed = Pattern::parse(&pattern);
        assert_eq!(parsed.is_ok(), valid, "{pattern:?} is a pattern: {parsed:?}; in the database: {valid}");
        seen[usize::from(valid)] += 1;
    }
    assert!(seen[0] > 500 && seen[1] > 500, "both kinds should be tried: {seen:?}");
    database.drop().await;
}

#[tokio::test]
async fn the_database_and_the_relay_agree_which_topics_a_pattern_matches() {
    let database = Database::new().await;
    let patterns: Vec<String> =
        sample(pattern(), 6_000).into_iter().filter(|pattern| Pattern::parse(pattern).is_ok()).collect();
    let topics = sample(proptest::collection::vec(segment(), 1..5).prop_map(|parts| parts.join(".")), 500);
    let topics: Vec<String> =
        topics.into_iter().filter(|topic| topic.split('.').all(|part| !part.is_empty())).collect();
    let pairs: Vec<(String, String)> = patterns
        .iter()
        .enumerate()
        .flat_map(|(n, pattern)| (0..10).map(move |k| (pattern.clone(), n * 31 + k * 7)))
        .map(|(p, n)| (p, topics[n % topics.len()].clone()))
        .collect();
    // Topics of operators' events, and what looks like them.
    let own = ["outbox", "outbox.a", "outbox.a.b", "outboxes.a", "a.outbox.b"];
    let towards =
        "** * *.** out* out*.** **.a *.a outbox outbox.* outbox.** outbox.a* outbox.a.** a.** **.**.b";
    let pairs: Vec<(String, String)> = towards
        .split(' ')
        .flat_map(|pattern| own.map(|topic| (pattern.to_owned(), topic.to_owned())))
        .chain(pairs)
        .collect();
    let (left, right): (Vec<String>, Vec<String>) = pairs.iter().cloned().unzip();
    let answers: Vec<bool> = sqlx::query_scalar(
        "select outbox.topic_matches(pattern, topic) from unnest($1::text[], $2::text[]) with ordinality as pair (pattern, topic, n) order by n",
    )
    .bind(left)
    .bind(right)
    .fetch_all(&database.pool)
    .await
    .unwrap();
    let mut matching = 0;
    for ((pattern, topic), answer) in pairs.iter().zip(&answers) {
        assert_eq!(
            Pattern::parse(pattern).unwrap().matches(topic),
            *answer,
            "{pattern:?} against {topic:?}; the database says {answer}"
        );
        matching += usize::from(*answer);
    }
    assert!(
        matching > 1_000 && answers.len() - matching > 1_000,
        "both answers should be tried: {matching} of {}",
        answers.len()
    );
    database.drop().await;
}

#[tokio::test]
async fn a_retry_policy_that_the_database_accepts_the_relay_accepts_too_and_refusals_name_the_field() {
    let good = [
        json!({}),
        json!({"max_attempts": 1}),
        json!({"max_attempts": 1000}),
        json!({"initial": "500ms", "max": "1.5h", "max_age": "5d"}),
        json!({"initial": "0s"}),
        json!({"multiplier": 1}),
        json!({"multiplier": 100}),
        json!({"multiplier": 2.5}),
        json!({"jitter": 0}),
        json!({"jitter": 1}),
        json!({"schedule": ["5s", "5m", "30m", "2h"]}),
        json!({"schedule": ["0s"], "jitter": 0.5, "max_age": "30d"}),
        json!({"max_age": "3660d"}),
    ];
    let bad = [
        ("retry.initial", json!({"initial": "5"})),
        ("retry.initial", json!({"initial": "5 s"})),
        ("retry.initial", json!({"initial": "-5s"})),
        ("retry.initial", json!({"initial": ".5s"})),
        ("retry.initial", json!({"initial": "5.s"})),
        ("retry.initial", json!({"initial": "1e3s"})),
        ("retry.initial", json!({"initial": "5s\n"})),
        ("retry.initial", json!({"initial": 5})),
        ("retry.initial", json!({"initial": null})),
        ("retry.max", json!({"max": "12hours"})),
        ("retry.max", json!({"max": ""})),
        ("retry.max_age", json!({"max_age": "∞d"})),
        ("retry.max_age", json!({"max_age": "99999999d"})),
        ("retry.max", json!({"max": "4000d"})),
        ("retry.schedule", json!({"schedule": ["5s", "4000d"]})),
        ("retry.max_attempts", json!({"max_attempts": 0})),
        ("retry.max_attempts", json!({"max_attempts": 1001})),
        ("retry.max_attempts", json!({"max_attempts": 1.5})),
        ("retry.max_attempts", json!({"max_attempts": 5.0})),
        ("retry.max_attempts", json!({"max_attempts": "12"})),
        ("retry.max_attempts", json!({"max_attempts": -1})),
        ("retry.max_attempts", json!({"max_attempts": null})),
        ("retry.multiplier", json!({"multiplier": 0.5})),
        ("retry.multiplier", json!({"multiplier": 101})),
        ("retry.multiplier", json!({"multiplier": "4"})),
        ("retry.jitter", json!({"jitter": -0.1})),
        ("retry.jitter", json!({"jitter": 1.1})),
        ("retry.jitter", json!({"jitter": true})),
        ("retry.schedule", json!({"schedule": []})),
        ("retry.schedule", json!({"schedule": "5s"})),
        ("retry.schedule", json!({"schedule": ["5"]})),
        ("retry.schedule", json!({"schedule": [5]})),
        ("retry.schedule", json!({"schedule": vec!["5s"; 101]})),
        ("retry.schedule", json!({"schedule": ["5s"], "max_attempts": 3})),
        ("retry.schedule", json!({"schedule": ["5s"], "initial": "5s"})),
        ("retry.tries", json!({"tries": 3})),
        ("retry", json!([])),
        ("retry", json!("12")),
    ];
    let database = Database::new().await;
    let mut connection = database.connection().await;
    let mut subscribe = async |retry: &Value| {
        let mut transaction = connection.begin().await.unwrap();
        let answer = sqlx::query("select outbox.subscribe('s', array['**'], 'recorder', retry => $1)")
            .bind(retry)
            .execute(&mut *transaction)
            .await;
        transaction.rollback().await.unwrap();
        answer
    };
    for retry in &good {
        subscribe(retry).await.unwrap_or_else(|error| panic!("the database should accept {retry}: {error}"));
        RetryPolicy::parse(retry).unwrap_or_else(|error| panic!("the relay should accept {retry}: {error}"));
    }
    let mut wrong = Vec::new();
    for (field, retry) in &bad {
        match subscribe(retry).await {
            Ok(_) => wrong.push(format!("the database took {retry}")),
            Err(error) => {
                let error = error.into_database_error().unwrap();
                if !error.message().starts_with(&format!("{field}:")) {
                    wrong.push(format!("{retry}: {:?} should name {field}", error.message()));
                }
            }
        }
        match RetryPolicy::parse(retry) {
            // The relay treats null like a missing key; the database refuses it.
            Ok(_) if retry.as_object().is_some_and(|keys| keys.values().any(Value::is_null)) => {}
            Ok(_) => wrong.push(format!("the relay took {retry}")),
            Err(error) if !error.starts_with("retry") => {
                wrong.push(format!("{retry}: {error:?} should name the field"))
            }
            Err(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    database.drop().await;
}
