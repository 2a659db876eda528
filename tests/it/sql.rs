//! Every statement of the relay is prepared as by the relay and stays cheap, with statistics of empty tables
//! and with a million rows.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::{
    AssertSqlSafe, Column as _, ConnectOptions, Connection, Executor, PgConnection, SqlSafeStr as _,
    Statement as _,
};
use tokio::sync::OnceCell;

use crate::support::{
    Database,
    plans::{
        self, FOR_PEOPLE, LEASED, LEASED_FROM, Measured, NEW, ROWS, Statement, TOKEN, buffers, complaints,
    },
};

/// Measurements with stale and with fresh statistics.
static MEASURED: OnceCell<[(&str, Measured); 2]> = OnceCell::const_new();

async fn measured() -> &'static [(&'static str, Measured); 2] {
    MEASURED
        .get_or_init(|| async {
            let database = Database::new().await;
            plans::fill(&database).await;
            let mut superuser = database.connection().await;
            let settled: (String, Vec<String>) = sqlx::query_as(
                "select pg_snapshot_xmax(now_seen)::text, array(select xid::text from pg_snapshot_xip(now_seen) as xid)
                   from pg_current_snapshot() as now_seen",
            )
            .fetch_one(&mut superuser)
            .await
            .unwrap();
            let (first, last) = ((ROWS + 1).to_string(), (ROWS + NEW).to_string());
            let new = plans::events(&first, &last, "pg_current_xact_id()");
            superuser.execute(AssertSqlSafe(new)).await.unwrap();
            let end: String = sqlx::query_scalar("select pg_current_snapshot()::text")
                .fetch_one(&mut superuser)
                .await
                .unwrap();
            let arguments = arguments(&settled, &end);
            let lying = measure(&database, &arguments).await;
            superuser.execute("analyze").await.unwrap();
            let honest = measure(&database, &arguments).await;
            superuser.close().await.unwrap();
            database.drop().await;
            [("analyzed while empty", lying), ("analyzed when full", honest)]
        })
        .await
}

async fn measure(database: &Database, arguments: &BTreeMap<&str, Vec<String>>) -> Measured {
    let mut connection = plans::relay_connection(database).await;
    let mut operator = database.options.connect().await.unwrap();
    let mut measured = Measured::default();
    for statement in plans::statements() {
        let by = if statement.is_an_operators() { &mut operator } else { &mut connection };
        let plan = plans::plan(by, &statement)
            .await
            .unwrap_or_else(|error| panic!("{} should be prepared: {error}", statement.name));
        if let Some(arguments) = arguments.get(statement.name.as_str()) {
            measured.runs.insert(statement.name.clone(), plans::run(by, &statement, arguments).await);
        }
        measured.plans.insert(statement.name, plan);
    }
    for connection in [connection, operator] {
        connection.close().await.unwrap();
    }
    measured
}

/// Arguments of the frequent statements.
fn arguments(settled: &(String, Vec<String>), end: &str) -> BTreeMap<&'static str, Vec<String>> {
    let leased = format!(
        "'{{{}}}'",
        (LEASED_FROM..LEASED_FROM + LEASED).map(|id| id.to_string()).collect::<Vec<_>>().join(",")
    );
    let token = format!("'{{{TOKEN}}}'");
    let list = |value: &dyn Fn(i64) -> String| {
        format!("'{{{}}}'", (1..=NEW).map(value).collect::<Vec<_>>().join(","))
    };
    let (xmax, xip) = settled;
    BTreeMap::from([
        ("load_cursor", vec!["0".into()]),
        (
            "read_events",
            vec![
                format!("'{xmax}'"),
                format!("'{{{}}}'", xip.join(",")),
                (NEW + 1).to_string(),
                "true".into(),
                "1".into(),
            ],
        ),
        (
            "read_page",
            vec![
                "'3:3:'".into(),
                format!("'{end}'"),
                "500000".into(),
                ROWS.to_string(),
                "1000".into(),
                "true".into(),
                "1".into(),
                // A transaction that committed late may have positions below this one.
                "600000".into(),
                format!("'{{{xmax}}}'"),
                format!("'{}'", xmax.parse::<i64>().unwrap() + 1),
                format!("'{}'", xmax.parse::<i64>().unwrap() + 3),
            ],
        ),
        (
            "open_window",
            vec![
                ROWS.to_string(),
                // Four probes: one transaction that was in progress, and three that began later. Those of
                // other tests, which may be in progress too, are not among them.
                format!("'{{{xmax}}}'"),
                format!("'{}'", xmax.parse::<i64>().unwrap() + 1),
                format!("'{}'", xmax.parse::<i64>().unwrap() + 3),
            ],
        ),
        (
            "claim_deliveries",
            vec![
                "'{1,2,3,4,5,6,7,8,9}'".into(),
                "'{64,64,64,64,64,64,64,64,64}'".into(),
                "array_fill(null::timestamptz, array[9])".into(),
                format!("'{TOKEN}'"),
                "10".into(),
            ],
        ),
        (
            "advance_cursor",
            vec![
                "1".into(),
                format!("'{end}'"),
                "null".into(),
                "null".into(),
                "null".into(),
                "null".into(),
                "null".into(),
                "'{0,0,1}'".into(),
                "'{1,2,3}'".into(),
                format!("array['{{[{0},{1})}}','{{[{0},{1})}}','{{[{0},{1})}}']", ROWS + 1, ROWS + NEW),
                format!("'{TOKEN}'"),
                "10".into(),
                "'relay'".into(),
                "'{4}'".into(),
                format!("array['{{[{},{})}}']", ROWS + 1, ROWS + NEW),
                "'2026-01-20Z'".into(),
                "'2026-01-20Z'".into(),
                ROWS.to_string(),
                "null".into(),
                "null".into(),
                "'{}'".into(),
                list(&|n| (ROWS + n).to_string()),
                list(&|_| "2026-01-20Z".to_owned()),
                list(&|n| (1 + n % 9).to_string()),
                list(&|_| "null".to_owned()),
                list(&|_| "0".to_owned()),
                "'{}'".into(),
            ],
        ),
        ("settle_delivered", vec![leased.clone(), token.clone()]),
        ("find_locked", vec![leased.clone(), "'{1,2,3}'".into()]),
        (
            "settle_retries",
            vec![
                leased.clone(),
                token.clone(),
                list(&|_| "5".to_owned()),
                list(&|_| "true".to_owned()),
                list(&|_| "false".to_owned()),
            ],
        ),
        (
            "settle_dead",
            vec![
                leased.clone(),
                token.clone(),
                list(&|_| "timeout".to_owned()),
                list(&|_| "500".to_owned()),
                list(&|_| "no".to_owned()),
            ],
        ),
        ("renew_leases", vec![leased.clone(), token, "10".into()]),
        ("find_due", vec!["null".into()]),
        ("load_events", vec![leased, "'2026-01-01Z'".into(), "'2026-02-01Z'".into(), "262144".into()]),
        ("cancel_orphans", vec!["5000".into(), "10".into(), "null".into()]),
        ("measure_backlog", vec!["null".into()]),
        ("freshen_due", vec!["0".into(), "100".into(), "now() - interval '50 minutes'".into(), "100".into()]),
    ])
}

fn run<'a>(measured: &'a Measured, name: &str) -> &'a Value {
    measured.runs.get(name).unwrap_or_else(|| panic!("{name} should have been run"))
}

#[test]
fn every_statement_opens_with_its_purpose() {
    for Statement { folder, name, text } in plans::statements() {
        assert!(
            text.starts_with("-- "),
            "sql/{folder}/{name}.sql should open with a comment that says what it is for"
        );
        assert!(
            text.contains("outbox.") || text.contains("outbox_internal.") || !text.contains(" from "),
            "sql/{folder}/{name}.sql should write out the schema"
        );
        let numbers = (1..20).filter(|number| text.contains(&format!("${number}"))).count();
        let explained = (1..20)
            .filter(|number| {
                text.lines().any(|line| line.starts_with("--") && line.contains(&format!("${number}")))
            })
            .count();
        assert_eq!(
            explained, numbers,
            "sql/{folder}/{name}.sql should explain each of its parameters in its header"
        );
    }
}

#[tokio::test]
async fn statements_that_return_events_list_their_columns_first_and_in_one_order() {
    // By place, as `src/store/events.rs` reads them; those that deliveries are read with have the first 11.
    let all = "position created_at id topic key organization source user_id schema_version headers payload \
               priority deliver_after";
    let all: Vec<&str> = all.split(' ').collect();
    let database = Database::new().await;
    let mut connection = plans::relay_connection(&database).await;
    for (name, expected) in [
        ("load_events", &all[..11]),
        ("read_events", &all[..]),
        ("read_page", &all[..]),
        ("read_past", &all[..]),
        ("read_urgent", &all[..]),
    ] {
        let statement = plans::statements().into_iter().find(|one| one.name == name).unwrap();
        let described = connection.prepare(AssertSqlSafe(statement.text).into_sql_str()).await.unwrap();
        let columns: Vec<&str> = described.columns().iter().map(|column| column.name()).collect();
        assert_eq!(columns.get(..expected.len()), Some(expected), "{name}");
    }
}

#[tokio::test]
async fn no_statement_of_a_relay_reads_all_of_a_growing_table_or_sorts_it() {
    for (when, measured) in measured().await {
        for (name, plan) in measured.plans.iter().filter(|(name, _)| !FOR_PEOPLE.contains(&name.as_str())) {
            let found = complaints(plan);
            assert!(found.is_empty(), "{name}, {when}: {found:?}\n{plan:#}");
        }
    }
}

/// Compares buffers instead of time, which do not depend on the machine.
#[tokio::test]
async fn among_a_million_rows_the_frequent_statements_touch_few_pages() {
    const CURSOR: i64 = 20;
    // Pages of the rows and of the index.
    let limits = [
        ("load_cursor", CURSOR),
        ("open_window", 2 * CURSOR), // one probe for each open transaction
        ("read_events", 60),
        ("read_page", 100),
        ("find_due", 150),
        ("cancel_orphans", CURSOR),
        ("freshen_due", 100 * 20),
        ("claim_deliveries", 9 * 64 * 20),
        ("settle_delivered", LEASED * 12),
        ("find_locked", LEASED * 20),
        ("settle_retries", LEASED * 20),
        ("settle_dead", LEASED * 40),
        ("renew_leases", LEASED * 20),
        ("load_events", LEASED * 20),
        ("advance_cursor", NEW * 20),
        ("measure_backlog", 50_000), // counts at most 100,000 rows of each subscription
    ];
    for (when, measured) in measured().await {
        for (name, limit) in limits {
            let plan = run(measured, name);
            let touched = buffers(plan);
            println!("{when}: {name} touched {touched} buffers, at most {limit}");
            assert!(touched <= limit, "{name}, {when}: {touched} buffers, at most {limit}\n{plan:#}");
        }
    }
}

#[tokio::test]
async fn claims_for_others_do_not_read_a_million_deliveries_of_one_subscription() {
    for (when, measured) in measured().await {
        let plan = run(measured, "claim_deliveries");
        let mut most = 0;
        rows_read(plan, &mut most);
        assert!(most <= 9 * 64, "{when}: a node read {most} rows\n{plan:#}");
    }
}

fn rows_read(node: &Value, most: &mut i64) {
    let number = |key: &str| node[key].as_f64().unwrap_or(0.0);
    #[expect(clippy::cast_possible_truncation, reason = "row counts are small whole numbers")]
    let rows =
        ((number("Actual Rows") + number("Rows Removed by Filter")) * number("Actual Loops").max(1.0)) as i64;
    *most = rows.max(*most);
    node["Plans"].as_array().into_iter().flatten().for_each(|child| rows_read(child, most));
}

/// The cursor was moved past 100,000 events while a transaction with 2,000 earlier ones was open.
#[tokio::test]
async fn a_page_of_events_that_committed_late_does_not_read_what_was_routed_meanwhile() {
    let database = Database::new().await;
    database.execute("alter table outbox.events_default set (autovacuum_enabled = off)").await;
    let mut late = database.connection().await;
    late.execute("begin").await.unwrap();
    late.execute(AssertSqlSafe(plans::events("1", "2000", "pg_current_xact_id()"))).await.unwrap();
    database.execute(plans::events("2001", "102000", "pg_current_xact_id()")).await;
    let (settled, xmax, open): (String, String, Vec<String>) = sqlx::query_as(
        "update outbox.cursor as cursor
            set settled = seen.settled, low = 102000, low_xid = pg_snapshot_xmax(seen.settled)
           from pg_current_snapshot() as seen (settled)
        returning cursor.settled::text, cursor.low_xid::text,
                  array(select xid::text from pg_snapshot_xip(cursor.settled) as xid)",
    )
    .fetch_one(&database.pool)
    .await
    .unwrap();
    late.execute("commit").await.unwrap();
    let end: String =
        sqlx::query_scalar("select pg_current_snapshot()::text").fetch_one(&database.pool).await.unwrap();
    let mut relay = plans::relay_connection(&database).await;
    let page = ["0", "102000", "1000", "true", "1", "102000"].map(str::to_owned);
    let mut arguments = vec![format!("'{settled}'"), format!("'{end}'")];
    arguments.extend(page);
    arguments.extend([format!("'{{{}}}'", open.join(",")), format!("'{xmax}'"), format!("'{xmax}'")]);
    for when in ["analyzed while empty", "analyzed when full"] {
        // Pages of the table: a thousand rows of this size fill 20.
        for (name, arguments, rows, limit) in
            [("read_page", &arguments, 1000.0, 100), ("measure_log", &vec![], 1.0, 150)]
        {
            let statement = plans::statements().into_iter().find(|one| one.name == name).unwrap();
            let plan = plans::run(&mut relay, &statement, arguments).await;
            println!("{when}: {name} touched {} buffers", buffers(&plan));
            assert_eq!(plan["Actual Rows"].as_f64(), Some(rows), "{when}: {plan:#}");
            assert!(buffers(&plan) <= limit, "{when}: {name} touched {}\n{plan:#}", buffers(&plan));
        }
        database.execute("analyze").await;
    }
    for connection in [late, relay] {
        PgConnection::close(connection).await.unwrap();
    }
    database.drop().await;
}

/// 20,000 steps, each with a delivery created and settled, while an old transaction keeps every dead row
/// version.
#[tokio::test]
async fn an_old_transaction_that_holds_back_vacuum_does_not_slow_the_next_step() {
    let database = Database::new().await;
    database
        .execute("select outbox.subscribe('s' || n, array['**'], 'recorder') from generate_series(1, 3) as n")
        .await;
    database
        .execute(
            "insert into outbox.deliveries (subscription_id, due_at, position, created_at) select n, now() + '1 day', n, now() from generate_series(1, 3) as n",
        )
        .await;
    let mut old = database.connection().await;
    let mut held = old.begin().await.unwrap();
    held.execute("set transaction isolation level repeatable read; select pg_current_xact_id()")
        .await
        .unwrap();
    let mut busy = database.connection().await;
    let steps = "do $$
        begin
            for n in 1..20000 loop
                insert into outbox.deliveries (subscription_id, due_at, position, created_at) values (1 + n % 3, now() - interval '1 hour', n, now());
                delete from outbox.deliveries where due_at < now();
                update outbox.cursor set step = step + 1, settled = pg_current_snapshot() where step = n;
                commit;
            end loop;
        end $$";
    busy.execute("set enable_seqscan = off").await.unwrap();
    busy.execute(sqlx::raw_sql(steps)).await.unwrap();
    let mut relay = plans::relay_connection(&database).await;
    let since = "now() - interval '20 seconds'".to_owned();
    for (name, arguments, limit) in [
        ("load_cursor", vec!["0".to_owned()], 20),
        ("find_due", vec![since.clone()], 100),
        (
            "claim_deliveries",
            vec![
                "'{1,2,3}'".into(),
                "'{64,64,64}'".into(),
                format!("array_fill({since}, array[3])"),
                format!("'{TOKEN}'"),
                "10".into(),
            ],
            100,
        ),
    ] {
        let statement = plans::statements().into_iter().find(|statement| statement.name == name).unwrap();
        let plan = plans::run(&mut relay, &statement, &arguments).await;
        println!("with 20,000 dead versions {name} touched {} buffers", buffers(&plan));
        assert!(
            buffers(&plan) <= limit,
            "{name} touched {} buffers, at most {limit}\n{plan:#}",
            buffers(&plan)
        );
    }
    // The step finds the newest version by its number, without reading dead ones.
    let statement =
        plans::statements().into_iter().find(|statement| statement.name == "advance_cursor").unwrap();
    let mut step: Vec<String> = ["20001", "'3:3:'"].map(str::to_owned).to_vec();
    step.extend(vec!["null".to_owned(); 5]);
    step.extend(vec!["'{}'".to_owned(); 3]);
    step.extend([
        format!("'{TOKEN}'"),
        "10".to_owned(),
        "'relay'".to_owned(),
        "'{}'".to_owned(),
        "'{}'".to_owned(),
    ]);
    step.extend(["null", "null", "0", "null", "null"].map(str::to_owned));
    step.extend(vec!["'{}'".to_owned(); 7]);
    let plan = plans::run(&mut relay, &statement, &step).await;
    assert_eq!(plan["Actual Rows"].as_f64(), Some(1.0), "the cursor moved: {plan:#}");
    assert!(buffers(&plan) <= 40, "{plan:#}");
    held.rollback().await.unwrap();
    for connection in [relay, old, busy] {
        PgConnection::close(connection).await.unwrap();
    }
    database.drop().await;
}
