//! Subscriptions exported as SQL and applied from a file.

use std::{io::Write as _, process::Command};

use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::Database;

fn pgoutbox(database: &Database, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pgoutbox"))
        .args(arguments)
        .env_clear()
        .env("DATABASE_URL", database.url())
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn file(suffix: &str, text: &str) -> tempfile::TempPath {
    let mut file = tempfile::Builder::new().suffix(suffix).tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.into_temp_path()
}

async fn all(database: &Database) -> Vec<String> {
    sqlx::query_scalar(
        "select (to_jsonb(s) - 'id' - 'changed' - 'created_at' - 'updated_at')::text from outbox.subscriptions as s order by name",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
}

#[tokio::test]
async fn what_export_prints_makes_the_same_subscriptions_again() {
    let database = Database::new().await;
    database
        .pool
        .execute(
            r#"select outbox.subscribe('plain', array['a.**', 'b.*'], 'stdout');
               select outbox.subscribe('rich', array['o''clock.*'], 'webhook', '{"url": "https://example.com/it''s", "headers": {"x": "\\\"q\""}}',
                   filter => 'payload.note == "it''s \\d"', transform => '{"a": payload}', match => '{"n": 1e400}', organization => 'acme',
                   keys => array['k''1'], retry => '{"max_attempts": 3}', max_in_flight => 7, schema_version => 2);
               select outbox.pause('rich')"#,
        )
        .await
        .unwrap();
    let before = all(&database).await;
    let (code, sql, _) = pgoutbox(&database, &["subscriptions", "export"]);
    assert_eq!(code, 0);
    database.pool.execute("delete from outbox.subscriptions").await.unwrap();
    database.pool.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    assert_eq!(all(&database).await, before);
}

#[tokio::test]
async fn apply_shows_what_it_changes_and_a_second_time_changes_nothing() {
    let database = Database::new().await;
    database
        .pool
        .execute(
            "select outbox.subscribe('kept', array['a.*'], 'stdout'); \
             select outbox.subscribe('old', array['a.*'], 'stdout')",
        )
        .await
        .unwrap();
    let path = file(
        ".toml",
        r#"[[subscriptions]]
name = "kept"
topics = ["a.*", "b.*"]
sink = "stdout"

[[subscriptions]]
name = "new"
topics = ["**"]
sink = "webhook"
filter = "topic != 'x'"
config = { url = "https://example.com/" }
retry = { max_attempts = 3 }
match = { kind = "order" }
"#,
    );
    let path = path.to_str().unwrap();
    let shown = "~ kept\n    topics: [\"a.*\"] -> [\"a.*\",\"b.*\"]\n+ new\n- old\n";
    let before = all(&database).await;
    assert_eq!(
        pgoutbox(&database, &["subscriptions", "apply", "-f", path, "--prune", "--dry-run"]),
        (0, shown.to_owned(), "nothing was changed\n".to_owned())
    );
    assert_eq!(all(&database).await, before);
    assert_eq!(
        pgoutbox(&database, &["subscriptions", "apply", "-f", path, "--prune"]),
        (0, shown.to_owned(), String::new())
    );
    let names: Vec<String> = sqlx::query_scalar("select name from outbox.subscriptions order by name")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(names, ["kept", "new"]);
    assert_eq!(
        pgoutbox(&database, &["subscriptions", "apply", "-f", path, "--prune"]),
        (0, String::new(), "nothing to change\n".to_owned())
    );
}

#[tokio::test]
async fn a_file_with_one_mistake_changes_nothing_and_names_it() {
    let database = Database::new().await;
    for (suffix, text, expected) in [
        (
            ".toml",
            "[[subscriptions]]\nname = 'a'\ntopics = ['**']\nsink = 'stdout'\n[[subscriptions]]\nname = 'b'\ntopics = ['**']\nsink = 'stdout'\nfilter = '1 +'",
            "subscription b: filter:",
        ),
        (
            ".json",
            r#"{"subscriptions": [{"name": "a", "topics": ["**"], "sink": "stdout"}, {"name": "b", "topics": ["a..b"], "sink": "stdout"}]}"#,
            "'a..b' is not a topic pattern",
        ),
        (
            ".toml",
            "[[subscriptions]]\nname = 'a'\ntopics = ['**']\nsink = 'stdout'\ncolour = 'blue'",
            "unknown field `colour`",
        ),
        (".json", "{\"subscriptions\": [\n{“name”: 1}]}", "line 2, column 2, where '“' is"),
        (".toml", "[[subscription]]\nname = 'a'", "line 1"),
        (
            ".toml",
            "[[subscriptions]]\nname = 'a'\ntopics = ['**']\nsink = 'stdout'\n[[subscriptions]]\nname = 'a'\ntopics = ['**']\nsink = 'stdout'",
            "twice",
        ),
    ] {
        let path = file(suffix, text);
        let (code, _, talk) = pgoutbox(&database, &["subscriptions", "apply", "-f", path.to_str().unwrap()]);
        assert_eq!(code, 1, "{talk}");
        assert!(talk.contains(expected) && !talk.contains("default"), "{expected}: {talk}");
        assert_eq!(all(&database).await.len(), 0);
    }
}

#[tokio::test]
async fn a_config_that_no_relay_could_read_is_refused() {
    let database = Database::new().await;
    let deep = format!("{{\"a\": {}1{}}}", "[".repeat(130), "]".repeat(130));
    for (config, expected) in [("{\"a\": [1e400]}", "out of range"), (deep.as_str(), "more than 120")] {
        let refusal = sqlx::query("select outbox.subscribe('bad', array['**'], 'stdout', $1::text::jsonb)")
            .bind(config)
            .execute(&database.pool)
            .await;
        let refusal = refusal.unwrap_err().to_string();
        assert!(refusal.contains("config:") && refusal.contains(expected), "{refusal}");
    }
}

#[tokio::test]
async fn every_value_that_jsonb_holds_survives_export_and_apply() {
    let database = Database::new().await;
    let values = [
        "null",
        "{}",
        "[[], {}, \"\"]",
        r#"{"n": 12345678901234567890123}"#,
        r#"{"n": -0.1000000000000000000000000000000001, "m": 1.10, "o": 1e400, "p": 1e-400}"#,
        r#"{"i": 9007199254740993, "j": 18446744073709551616}"#,
        r#"{"text": "o'clock \\ \" é \u2028 \u202e", "": {"$serde_json::private::RawValue": "1"}}"#,
    ];
    for (number, value) in values.iter().enumerate() {
        sqlx::query(
            "select outbox.subscribe($1, array['**'], 'webhook', \
                    '{\"url\": \"https://example.com/\", \"headers\": {\"n\": \"123\"}}', match => $2::text::jsonb)",
        )
        .bind(format!("s{number}"))
        .bind(value)
        .execute(&database.pool)
        .await
        .unwrap();
    }
    database
        .execute(
            "select outbox.subscribe('rounded', array['**'], 'recorder', '{\"n\": 12345678901234567890123}', \
                    filter => 'payload.n > 1', transform => 'payload', organization => 'acme', \
                    keys => array['k'], retry => '{\"max_attempts\": 3, \"jitter\": 0.30}', \
                    max_in_flight => 7, schema_version => 2)",
        )
        .await;
    let before = all(&database).await;
    let (code, listed, talk) = pgoutbox(&database, &["subscriptions", "list", "--json"]);
    assert_eq!((code, listed.lines().count()), (0, values.len() + 1), "{talk}");
    assert!(
        listed.contains("12345678901234567890123") && listed.contains("18446744073709551616"),
        "{listed}"
    );

    let (code, exported, talk) = pgoutbox(&database, &["subscriptions", "export", "--json"]);
    assert_eq!(code, 0, "{talk}");
    let path = file(".json", &exported);
    let apply = ["subscriptions", "apply", "-f", path.to_str().unwrap()];
    assert_eq!(pgoutbox(&database, &apply), (0, String::new(), "nothing to change\n".to_owned()));
    database.execute("delete from outbox.subscriptions").await;
    let (code, _, talk) = pgoutbox(&database, &apply);
    assert_eq!(code, 0, "{talk}");
    assert_eq!(all(&database).await, before);
    database.drop().await;
}
