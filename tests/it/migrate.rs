//! How a schema becomes a newer one: by many processes at once, killed in between, beside publishers and
//! relays, and by somebody's own hands. And how it is removed.

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use pgoutbox::store::schema;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, Executor};

use crate::{
    migrations::{dump, history, migrations},
    support::{Database, Recorder, RelayBox},
};

/// A database that has the migrations before this one.
pub(crate) async fn migrated_before((number, what): &(i64, String)) -> Database {
    let database = Database::empty_beside_roles().await;
    let script = schema::script(None);
    let end = script.find(&format!("\n-- {number:04}_{}\n", what.replace(' ', "_"))).unwrap();
    database.pool.execute(sqlx::raw_sql(AssertSqlSafe(script[..end].to_owned()))).await.unwrap();
    database
}

/// Begins `pgoutbox migrate` in a process.
fn migrating(database: &Database) -> Child {
    let mut command = database.command(&["migrate"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[tokio::test]
async fn twenty_processes_that_migrate_at_once_all_succeed_and_apply_each_migration_once() {
    let database = Database::empty_beside_roles().await;
    let processes: Vec<Child> = (0..20).map(|_| migrating(&database)).collect();
    let mut applied = Vec::new();
    for process in processes {
        let output = tokio::task::spawn_blocking(|| process.wait_with_output().unwrap()).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        applied.extend(String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned));
    }
    applied.sort();
    let names = |(number, what): (i64, String)| format!("{number:04}_{}", what.replace(' ', "_"));
    assert_eq!(applied, migrations().into_iter().map(names).collect::<Vec<_>>());
    assert_eq!(history(&database).await, migrations());
    database.drop().await;
}

#[tokio::test]
async fn a_migration_that_is_killed_leaves_nothing_half_done_and_the_next_goes_on_behind_it() {
    let database = Database::empty_beside_roles().await;
    let applied = "select case when to_regclass('outbox.migrations') is null then 0 else \
                   (xpath('/row/n/text()', query_to_xml('select count(*) as n from outbox.migrations', \
                    false, true, '')))[1]::text::bigint end";
    let last = i64::try_from(migrations().len()).unwrap();
    for kills in 1.. {
        let before = database.count(applied).await;
        let mut process = migrating(&database);
        // In the middle of a migration, or of the answer to its commit.
        let further = format!("select ({applied}) >= {}", (before + 2).min(last));
        database.eventually(&further).await;
        process.kill().unwrap();
        process.wait().unwrap();
        if before + 2 >= last {
            assert!(kills > 3, "{kills}");
            break;
        }
    }
    schema::run(&database.options).await.unwrap();
    let other = Database::empty_beside_roles().await;
    schema::run(&other.options).await.unwrap();
    assert_eq!(history(&database).await, migrations());
    assert_eq!(dump(&database), dump(&other));
    database.drop().await;
    other.drop().await;
}

/// A migration that makes triggers on the log waits for a transaction that has published and goes on.
#[tokio::test]
async fn publishers_go_on_while_a_migration_waits_for_the_lock_of_a_table() {
    let database = migrated_before(&(16, "live".to_owned())).await;
    let mut open = database.connection().await;
    let mut open = open.begin().await.unwrap();
    let publish = "select outbox.publish('shop.sold', '1')";
    open.execute(publish).await.unwrap();
    let options = database.options.clone();
    let publishing = async {
        let mut publisher = database.connection().await;
        let (began, mut longest) = (Instant::now(), Duration::ZERO);
        while began.elapsed() < Duration::from_millis(1_500) {
            let before = Instant::now();
            publisher.execute(publish).await.unwrap();
            longest = longest.max(before.elapsed());
        }
        assert_eq!(database.count("select max(version) from outbox.migrations").await, 15);
        open.commit().await.unwrap();
        longest
    };
    let (migrated, longest) = tokio::join!(schema::run(&options), publishing);
    assert_eq!(migrated.unwrap().first().map(String::as_str), Some("0016_live"));
    // It was behind the migration several times. Without a limit it would have waited for all of the time.
    let limit = Duration::from_millis(500);
    assert!(longest > Duration::from_millis(50) && longest < limit, "a publisher waited {longest:?}");
    database.drop().await;
}

#[tokio::test]
async fn a_schema_that_is_behind_is_brought_up_to_date_by_the_printed_sql() {
    let [.., (before, _), last] = &migrations()[..] else { panic!("two migrations") };
    let newest = last.0;
    let database = migrated_before(last).await;
    let status = |arguments: &[&str]| {
        let output = database.pgoutbox(&[&["migrate", "status"], arguments].concat());
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = status(&[]);
    assert!(code == Some(1) && said.starts_with(&format!("{newest:04}_")), "{said}");
    let (code, said) = status(&["--json"]);
    let json: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (code, json["applied"].as_i64(), json["known"].as_i64()),
        (Some(1), Some(*before), Some(newest))
    );
    assert_eq!(json["pending"].as_array().unwrap().len(), 1, "{said}");
    let printed = database.pgoutbox(&["migrate", "--sql", "--from", &newest.to_string()]);
    assert!(printed.status.success(), "{printed:?}");
    let script = String::from_utf8(printed.stdout).unwrap();
    database.pool.execute(sqlx::raw_sql(AssertSqlSafe(script))).await.unwrap();
    assert_eq!(status(&[]), (Some(0), String::new()));
    assert_eq!(schema::run(&database.options).await.unwrap(), Vec::<String>::new());
    for wrong in ["0", "9999"] {
        let refused = database.pgoutbox(&["migrate", "--sql", "--from", wrong]);
        assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    }
    database.execute("select outbox.declare_sink('recorder')").await;
    delivers(&database).await;
    database.drop().await;
}

/// Publishes through a relay of this binary: one event that arrives at once, and one that is retried.
async fn delivers(database: &Database) {
    let recorder = Recorder::answering(|seen| match seen.attempt {
        1 if seen.payload == "2" => pgoutbox::delivery::Outcome::Retry {
            reason: pgoutbox::delivery::Reason::ServerError,
            after: None,
        },
        _ => pgoutbox::delivery::Outcome::Delivered,
    });
    database
        .execute(
            "select outbox.subscribe('plain', array['shop.**'], 'recorder', retry => '{\"initial\": \"10ms\"}'), \
             outbox.subscribe('ordered', array['shop.**'], 'recorder', ordering => 'key', \
             retry => '{\"initial\": \"10ms\"}')",
        )
        .await;
    let relay = RelayBox::start(database, &recorder).await;
    database
        .execute(
            "select outbox.publish('shop.sold', to_jsonb(n), key => 'k') from generate_series(1, 3) as n",
        )
        .await;
    recorder.wait_for(8).await;
    database.eventually("select not exists (select from outbox.owed)").await;
    assert!(relay.stop().await.complete);
}

/// A newer version has added a table and a column to every table, and says that this program may go on.
/// Columns of dead letters are also those of a function, which would be replaced with them.
#[tokio::test]
async fn a_relay_runs_beside_a_newer_schema_that_has_only_grown() {
    let database = Database::new().await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select oid::regclass::text from pg_class \
          where relnamespace = 'outbox'::regnamespace and relkind in ('r', 'p') and not relispartition \
            and relname not in ('migrations', 'dead_letters') order by relname",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    assert!(tables.len() > 15, "{tables:?}");
    let mut newer = String::from("create table outbox.of_the_future (n integer);\n");
    for table in &tables {
        newer.push_str(&format!("alter table {table} add column of_the_future text default 'new';\n"));
    }
    newer.push_str(
        "insert into outbox.migrations (version, description, success, checksum, execution_time) \
         values (9999, 'of the future', true, '', 0);",
    );
    database.pool.execute(sqlx::raw_sql(AssertSqlSafe(newer))).await.unwrap();
    delivers(&database).await;
    let before = history(&database).await;
    for arguments in [&["migrate"][..], &["migrate", "status"]] {
        let output = database.pgoutbox(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("is newer (migration 9999) than this program"), "{said}");
    }
    assert_eq!(history(&database).await, before);
    for arguments in [&["status"][..], &["events", "list"], &["dlq", "list"], &["subs", "list"]] {
        let output = database.pgoutbox(arguments);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
    }
    database.drop().await;
}

#[tokio::test]
async fn uninstall_is_refused_while_something_is_left_and_then_leaves_nothing() {
    let database = Database::new().await;
    let uninstall = async |arguments: &str| {
        let call = format!("select outbox.uninstall({arguments})");
        database.pool.execute(AssertSqlSafe(call)).await.map(drop).map_err(|error| error.to_string())
    };
    let named = format!("'{}'", database.name());
    let everything = "select (select count(*) from pg_class) + (select count(*) from pg_proc) + \
                      (select count(*) from pg_trigger)";
    database
        .execute(
            "create table orders (id integer primary key); \
             select outbox.subscribe('shop', array['**'], 'recorder')",
        )
        .await;
    let refused = |result: Result<(), String>, why: &str| {
        let said = result.unwrap_err();
        assert!(said.contains(why), "{said}");
    };
    refused(uninstall("'another'").await, "is not the name of this database");
    refused(uninstall("null").await, "is not the name of this database");
    let relay = RelayBox::start(&database, &Recorder::new()).await;
    database.eventually("select exists (select from outbox.relays)").await;
    refused(uninstall(&named).await, "relays run: relay");
    relay.stop().await;
    database.execute("delete from outbox.relays").await;
    database.execute("select outbox.capture('orders')").await;
    database.execute("insert into orders values (1)").await;
    refused(uninstall(&named).await, "not all events were delivered");
    let login = format!("admin_{}", uuid::Uuid::new_v4().simple());
    database.execute(format!("create role {login} login in role outbox_admin")).await;
    let mut admin =
        sqlx::PgConnection::connect_with(&database.options.clone().username(&login)).await.unwrap();
    let said =
        admin.execute(AssertSqlSafe(format!("select outbox.uninstall({named}, true)"))).await.unwrap_err();
    assert!(said.to_string().contains("who owns the schema outbox"), "{said}");
    admin.close().await.unwrap();
    database.execute(format!("drop role {login}")).await;
    uninstall(&format!("{named}, force => true")).await.unwrap();
    let left = "select count(*) from pg_namespace where nspname like 'outbox%'";
    assert_eq!(database.count(left).await, 0);
    database.execute("insert into orders values (2)").await;
    let before = database.count(everything).await;
    schema::run(&database.options).await.unwrap();
    uninstall(&named).await.unwrap();
    assert_eq!(database.count(everything).await, before);
    database.drop().await;
}
