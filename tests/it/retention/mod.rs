//! What is old leaves: partitions are made ahead and dropped, publishers write on, and nothing that is owed
//! is lost. Most tests set the time.

mod asked;
mod beside;
mod kept;
mod relays;
mod steps;
mod trouble;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use crate::support::Database;

/// A time at which nothing happens by itself.
const START: &str = "2026-03-02 00:00:00+00";

/// What a step returned: what was done, and to which partition.
type Done = (Option<String>, Option<String>);

/// Takes a step towards a new partition, `days` after [`START`], for a period of ten days.
async fn make(database: &Database, log: &str, days: f64) -> Done {
    step(database, &format!("make_partition_at('{log}', '10 days', {})", at(days))).await
}

/// Takes a step towards dropping a partition, `days` after [`START`], for a period of ten days.
async fn drop_one(database: &Database, log: &str, laggard: &str, days: f64) -> Done {
    step(database, &format!("drop_partition_at('{log}', '10 days', '{laggard}', {})", at(days))).await
}

/// A time so many days after [`START`], as SQL.
fn at(days: f64) -> String {
    format!("(timestamptz '{START}' + {days} * interval '1 day')")
}

async fn step(database: &Database, call: &str) -> Done {
    let sql = format!("select done, partition from outbox_internal.{call}");
    sqlx::query_as(AssertSqlSafe(sql)).fetch_one(&database.pool).await.unwrap()
}

/// What was done, without the partition.
fn done(step: &Done) -> &str {
    step.0.as_deref().unwrap_or("nothing")
}

/// Makes all partitions that are missing.
async fn make_all(database: &Database, log: &str, days: f64) -> usize {
    for made in 0..20 {
        if done(&make(database, log, days).await) == "nothing" {
            return made;
        }
    }
    panic!("it does not end");
}

/// Drops all that may be dropped. Returns how many partitions.
async fn drop_all(database: &Database, log: &str, days: f64) -> usize {
    let mut dropped = 0;
    for _ in 0..100 {
        match done(&drop_one(database, log, "keep", days).await) {
            "dropped" => dropped += 1,
            // A lock was not to be had beside publishers: it is tried again.
            "deleted" | "emptied" | "locked" => {}
            _ => return dropped,
        }
    }
    panic!("it does not end");
}

/// Writes one event of a time so many days after [`START`], as nobody but the owner can.
async fn event(database: &Database, payload: i64, days: f64) {
    let sql = "insert into outbox.events (topic, payload, created_at) values ('a.b', ";
    database.execute(format!("{sql}'{payload}', {})", at(days))).await;
}

/// A dead letter of each event, for the subscription 1.
async fn dead_letters(database: &Database) {
    database
        .execute(
            "insert into outbox.dead_letters (subscription_id, subscription, reason, attempts, event_id, position,
                                              created_at, topic, payload, headers, priority)
             select 1, 'shop', 'timeout', 1, id, position, created_at, topic, payload, '{}', 0 from outbox.events",
        )
        .await;
}

/// As if relays had routed everything to nobody.
async fn routed(database: &Database) {
    database.execute("update outbox.cursor set step = step + 1, settled = pg_current_snapshot()").await;
}

/// Names of the partitions of a log, from the oldest; without the default one.
async fn partitions(database: &Database, log: &str) -> Vec<String> {
    sqlx::query_scalar("select relation::text from outbox_internal.log_partitions($1)")
        .bind(log)
        .fetch_all(&database.pool)
        .await
        .unwrap()
}

/// What keeps a partition, if anything does.
async fn kept_by(database: &Database) -> Option<String> {
    sqlx::query_scalar("select kept_by from outbox.retention_status where kept_by is not null")
        .fetch_optional(&database.pool)
        .await
        .unwrap()
}

/// Runs a query on a connection of its own; the error's code and message if it fails.
async fn tried(connection: &mut PgConnection, sql: &str) -> Result<usize, (String, String)> {
    match sqlx::query(AssertSqlSafe(sql.to_owned())).fetch_all(connection).await {
        Ok(rows) => Ok(rows.first().map_or(0, sqlx::Row::len)),
        Err(error) => {
            let error = error.into_database_error().unwrap();
            Err((error.code().unwrap_or_default().into_owned(), error.message().to_owned()))
        }
    }
}

/// Numbers in the payloads of a table, ascending.
async fn payloads(database: &Database, from: &str) -> Vec<i64> {
    let sql = format!("select payload::bigint as payload from {from} order by 1");
    let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&database.pool).await.unwrap();
    rows.iter().map(|row| row.get("payload")).collect()
}
