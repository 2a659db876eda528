//! Plans as the relay gets them: a filled database, plans of all statements of `sql/`, and checks of a plan.

use std::collections::BTreeMap;

use pgoutbox::store;
use serde_json::Value;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row};

use super::Database;

/// Rows in `outbox.events` and in `outbox.deliveries`.
pub(crate) const ROWS: i64 = 1_000_000;
/// Deliveries of the first of nine subscriptions.
pub(crate) const WAITING: i64 = 600_000;
/// First id of the deliveries leased with [`TOKEN`].
pub(crate) const LEASED_FROM: i64 = 900_001;
pub(crate) const LEASED: i64 = 500;
pub(crate) const TOKEN: &str = "00000000-0000-4000-8000-000000000001";
/// Events that the cursor's snapshot does not see.
pub(crate) const NEW: i64 = 500;

/// Tables that grow with use. Names of partitions begin with theirs.
const GROWING: [&str; 5] = ["events", "event_ids", "deliveries", "attempts", "dead_letters"];

/// Statements for operators that count or list everything.
pub(crate) const FOR_PEOPLE: [&str; 26] = [
    "subscription_status",
    "log_status",
    "list_dead_letters",
    "group_dead_letters",
    "count_dead_letters",
    "count_due", // run --once
    "list_deliveries",
    "page_deliveries",
    "count_deliveries",
    "recent_events",
    "list_events",
    "skim_events",
    "show_event",
    "find_event",
    "wait_for_event",
    "list_answers",
    "list_attempts",
    "list_audit",
    "trace_event",
    "explain_event",
    "trace_attempts",
    "list_replays",
    "read_replay",
    "published",
    "make_missing_rows",
    "latest", // where a live client begins
];

/// A statement: a file of `sql/`.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    /// Folder, which names the caller.
    pub(crate) folder: String,
    pub(crate) name: String,
    pub(crate) text: String,
}

/// All statements: files in `sql/` except schema.sql.
pub(crate) fn statements() -> Vec<Statement> {
    let all: Vec<Statement> = crate::tidy::files("sql", ".sql")
        .into_iter()
        .filter_map(|(path, text)| {
            let (folder, name) = path.strip_prefix("sql/")?.strip_suffix(".sql")?.split_once('/')?;
            Some(Statement {
                folder: folder.to_owned(),
                name: name.to_owned(),
                text: text.trim_end().trim_end_matches(';').to_owned(),
            })
        })
        .collect();
    assert!(all.len() > 30, "the folder sql/ should hold all statements: {all:?}");
    all
}

impl Statement {
    /// Whether operators or tests run it, not a relay.
    pub(crate) fn is_an_operators(&self) -> bool {
        matches!(self.folder.as_str(), "admin" | "testing" | "migrate")
    }

    fn parameters(&self) -> usize {
        (1..40).rev().find(|number| self.text.contains(&format!("${number}"))).unwrap_or(0)
    }
}

/// A connection with a relay's role and settings.
pub(crate) async fn relay_connection(database: &Database) -> PgConnection {
    database.relay_options.clone().options(store::settings()).connect().await.unwrap()
}

/// Prepares a statement and returns its generic plan.
pub(crate) async fn plan(connection: &mut PgConnection, statement: &Statement) -> Result<Value, sqlx::Error> {
    let nulls = vec!["null"; statement.parameters()];
    explain(connection, statement, "", &nulls).await
}

/// Runs a statement, rolls it back, and returns its plan with buffers.
pub(crate) async fn run(connection: &mut PgConnection, statement: &Statement, arguments: &[String]) -> Value {
    let mut transaction = connection.begin().await.unwrap();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let plan = explain(&mut transaction, statement, "analyze, buffers, ", &arguments).await;
    transaction.rollback().await.unwrap();
    plan.unwrap_or_else(|error| panic!("{}: {error}", statement.name))
}

async fn explain(
    connection: &mut PgConnection,
    statement: &Statement,
    options: &str,
    arguments: &[&str],
) -> Result<Value, sqlx::Error> {
    let Statement { name, text, .. } = statement;
    connection
        .execute(sqlx::raw_sql(AssertSqlSafe(format!("deallocate all; prepare {name} as {text}"))))
        .await?;
    let given = if arguments.is_empty() { String::new() } else { format!("({})", arguments.join(", ")) };
    let row = connection
        .fetch_one(sqlx::raw_sql(AssertSqlSafe(format!(
            "explain ({options}format json) execute {name}{given}"
        ))))
        .await?;
    Ok(row.try_get::<Value, _>(0)?[0]["Plan"].clone())
}

/// Number of buffers in a plan.
pub(crate) fn buffers(plan: &Value) -> i64 {
    ["Shared Hit Blocks", "Shared Read Blocks"].iter().map(|key| plan[key].as_i64().unwrap()).sum()
}

/// Defects of a plan: full scans and sorts of growing tables.
pub(crate) fn complaints(plan: &Value) -> Vec<String> {
    let mut found = Vec::new();
    look(plan, false, false, &mut found);
    found
}

fn look(node: &Value, limited: bool, sorted: bool, found: &mut Vec<String>) {
    let kind = node["Node Type"].as_str().unwrap_or_default();
    let (limited, sorted) = match kind {
        "Limit" => (true, false),
        "Sort" | "Incremental Sort" => (false, true),
        "Aggregate" | "Hash" | "Materialize" => (false, sorted),
        _ => (limited, sorted),
    };
    let relation = node["Relation Name"].as_str().unwrap_or_default();
    let grows = GROWING.iter().any(|name| relation.starts_with(name)) && !relation.ends_with("_seq");
    if grows && kind != "ModifyTable" {
        let bounded = limited || !node["Index Cond"].is_null() || kind.starts_with("Tid ");
        if kind == "Seq Scan" || !bounded {
            found.push(format!("{kind} reads all of {relation}"));
        }
        if sorted {
            found.push(format!("{kind} of {relation} is sorted"));
        }
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        // Limits and sorts above a subplan do not apply to its rows.
        let own = matches!(child["Parent Relationship"].as_str(), Some("InitPlan" | "SubPlan"));
        look(child, limited && !own, sorted && !own, found);
    }
}

/// Measurements in the filled database, by name of the statement.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) plans: BTreeMap<String, Value>,
    pub(crate) runs: BTreeMap<String, Value>,
}

/// Fills tables that were analyzed while empty, as happens to queue tables, so that their statistics are
/// stale.
pub(crate) async fn fill(database: &Database) {
    let mut connection = database.connection().await;
    let mut run = async |sql: String| connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.unwrap();
    // Partitions besides the default one.
    run("create table outbox.events_1 partition of outbox.events for \
         values from ('2026-01-01') to ('2026-01-05');
         create table outbox.events_2 partition of outbox.events for \
             values from ('2026-01-05') to ('2026-01-09');
         create table outbox.attempts_1 partition of outbox.attempts for \
             values from ('2026-01-01') to ('2026-01-09');
         select outbox.grant_roles();"
        .to_owned())
    .await;
    for table in [
        "events_default",
        "events_1",
        "events_2",
        "deliveries",
        "attempts_default",
        "attempts_1",
        "dead_letters",
        "cursor",
    ] {
        run(format!("alter table outbox.{table} set (autovacuum_enabled = off)")).await;
    }
    run("select outbox.subscribe('s' || n, array['**'], 'recorder') from generate_series(1, 9) as n"
        .to_owned())
    .await;
    run("analyze".to_owned()).await;
    run(format!("set outbox.doorbell = 'off'; {}; {}", events("1", &ROWS.to_string(), "'3'"), deliveries()))
        .await;
    run("insert into outbox.attempts (at, delivery_id, subscription_id, \
         position, event_id, attempt, duration, outcome, relay)
         select '2026-01-01'::timestamptz + n * interval '10 seconds', n, 1, n, \
             gen_random_uuid(), 1, '1s', 'retry', 'r' from generate_series(1, 100000) as n;
         insert into outbox.dead_letters (died_at, subscription_id, subscription, \
             reason, attempts, event_id, position, created_at, topic, payload, headers, priority)
         select '2026-01-01'::timestamptz + n * interval '10 seconds', 1 + n % 9, \
             's' || (1 + n % 9), 'server_error', 12, gen_random_uuid(), n, now(), 'a.b', '{}', '{}', 0
           from generate_series(1, 100000) as n"
        .to_owned())
    .await;
    connection.close().await.unwrap();
}

/// SQL that inserts events in the order of positions, one a second.
pub(crate) fn events(first: &str, last: &str, xid: &str) -> String {
    format!(
        "insert into outbox.events (xid, id, created_at, topic, key, payload)
         select {xid}::text::xid8, gen_random_uuid(), '2026-01-01Z'::timestamptz + n * interval '1 second', 'shop.orders.create', 'k' || n % 1000,
                '{{\"order\": 1}}'
           from generate_series({first}, {last}) as n"
    )
}

/// SQL that inserts deliveries: most for the first of nine subscriptions; of the others some are leased, some
/// due, most due tomorrow.
fn deliveries() -> String {
    let leased_until = LEASED_FROM + LEASED;
    format!(
        "insert into outbox.deliveries (subscription_id, due_at, position, created_at, lease_token, attempt)
         select case when n <= {WAITING} then 1 else 2 + n % 8 end,
                case when n <= {WAITING} then now() - interval '1 hour' + n * interval '1 millisecond'
                     when n between {LEASED_FROM} and {leased_until} - 1 then now() + interval '1 minute'
                     when n between {leased_until} and {leased_until} + 799 then now() - interval '1 second'
                     else now() + interval '1 day' end,
                n, '2026-01-01Z'::timestamptz + n * interval '1 second',
                case when n between {LEASED_FROM} and {leased_until} - 1 then '{TOKEN}'::uuid end, 1
           from generate_series(1, {ROWS}) as n"
    )
}
