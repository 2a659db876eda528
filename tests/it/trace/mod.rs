//! Why an event was not delivered: `outbox.explain` and `pgoutbox trace` say the same, and what is true.

mod conditions;
mod outcomes;
mod waits;

use std::collections::BTreeMap;

use pgoutbox::admin::TraceStatus;
use serde_json::Value;
use sqlx::types::Json;
use uuid::Uuid;

use crate::support::Database;

/// What is said about one event, by name of the subscription.
struct Told {
    /// The line of the event.
    event: Value,
    /// Lines of `pgoutbox trace`.
    by_command: BTreeMap<String, Value>,
    /// Rows of `outbox.explain`.
    by_sql: BTreeMap<String, Value>,
}

impl Told {
    async fn about(database: &Database, event: Uuid) -> Self {
        let output = database.pgoutbox(&["trace", &event.to_string(), "--json"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        let mut lines = said.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let event_line = lines.next().unwrap();
        let rows: Vec<Json<Value>> =
            sqlx::query_scalar("select to_jsonb(one) from outbox.explain($1) as one")
                .bind(event)
                .fetch_all(&database.pool)
                .await
                .unwrap();
        let name = |row: Value| (row["subscription"].as_str().unwrap_or_default().to_owned(), row);
        Self {
            event: event_line,
            by_command: lines.map(name).collect(),
            by_sql: rows.into_iter().map(|Json(row)| name(row)).collect(),
        }
    }

    /// The line of a subscription, for which both say this status, reason and wait.
    fn both(&self, subscription: &str, status: &str, reason: &str, waits_for: &str) -> &Value {
        for (who, rows) in [("the command", &self.by_command), ("SQL", &self.by_sql)] {
            let row = &rows[subscription];
            let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
            assert_eq!(
                (text("status").as_str(), text("reason").as_str(), text("waits_for").as_str()),
                (status, reason, waits_for),
                "{who} about {subscription}: {row:#}"
            );
        }
        &self.by_command[subscription]
    }
}

/// Publishes an event and returns its id. `more`: further arguments, each after a comma.
async fn publish(database: &Database, topic: &str, payload: &str, more: &str) -> Uuid {
    let sql = format!("select outbox.publish('{topic}', '{payload}'{more})");
    sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(&database.pool).await.unwrap()
}

/// What people are shown.
fn shown(database: &Database, arguments: &[&str]) -> String {
    let output = database.pgoutbox(&[&["trace"], arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_statuses_of_sql_are_those_of_the_code() {
    let schema = include_str!("../../../migrations/0012_explain.sql");
    let (_, judged) = schema.split_once("judged as (").unwrap();
    let (judged, _) = judged.split_once("end as status").unwrap();
    let branch = regex::Regex::new(r"(?:then|else)\s+'([a-z_]+)'\n").unwrap();
    let mut made: Vec<&str> = branch.captures_iter(judged).map(|found| found.extract::<1>().1[0]).collect();
    made.sort_unstable();
    made.dedup();
    let mut known: Vec<&str> = TraceStatus::ALL.iter().map(|status| status.code()).collect();
    known.sort_unstable();
    assert_eq!(made, known);
}
