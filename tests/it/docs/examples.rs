//! Runs the SQL and TOML of the book as the role that each block names, and compares the fields of each sink.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::{Command, Stdio},
};

use regex::Regex;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use uuid::Uuid;

use super::{Page, book, first_table};
use crate::support::Database;

/// First lines that a block of SQL may have, and the SQL that creates such a login.
const ROLES: &[(&str, &str)] = &[
    ("-- as a member of outbox_publisher", "create role {login} login in role outbox_publisher"),
    ("-- as a member of outbox_admin", "create role {login} login in role outbox_admin"),
    ("-- as a member of outbox_monitor", "create role {login} login in role outbox_monitor"),
    (
        "-- as a member of outbox_publisher and outbox_admin",
        "create role {login} login in role outbox_publisher, outbox_admin",
    ),
    (
        "-- as the owner of the table and a member of outbox_publisher",
        "create role {login} login in role outbox_publisher; grant create on schema public to {login}",
    ),
    ("-- as the owner of the database", "create role {login} login superuser"),
];

/// Logins of one page, created when they are needed.
struct Logins<'a> {
    database: &'a Database,
    made: BTreeMap<&'static str, PgConnection>,
    /// Roles that the examples create, which belong to the whole server.
    suffix: String,
}

impl<'a> Logins<'a> {
    fn new(database: &'a Database) -> Self {
        Self { database, made: BTreeMap::new(), suffix: Uuid::new_v4().simple().to_string() }
    }

    async fn run(&mut self, place: &str, sql: &str) {
        let first = sql.lines().next().unwrap_or_default();
        let Some((kind, made_with)) = ROLES.iter().find(|(kind, _)| *kind == first) else {
            panic!("{place}: a block of SQL begins with the role that runs it, one of ROLES; not {first:?}")
        };
        if !self.made.contains_key(kind) {
            let login = format!("docs_{}_{}", self.made.len(), self.suffix);
            self.database.execute(made_with.replace("{login}", &login)).await;
            self.made.insert(kind, self.database.options.clone().username(&login).connect().await.unwrap());
        }
        let sql = sql.replace("shop_relay", &format!("shop_relay_{}", self.suffix));
        let ran = self.made.get_mut(kind).unwrap().execute(sqlx::raw_sql(AssertSqlSafe(sql.clone()))).await;
        ran.map(drop).unwrap_or_else(|error| panic!("{place}: {error}\n{sql}"));
    }
}

/// Pages of the sinks, by kind.
fn sinks() -> BTreeMap<String, Page> {
    let pages = book().into_iter().filter_map(|(name, page)| {
        let kind = name.strip_prefix("sinks/")?.strip_suffix(".md")?.to_owned();
        (kind != "README").then_some((kind, page))
    });
    pages.collect()
}

/// The fields of a sink, from the list in its error message for an unknown field.
fn known(refusal: &str) -> BTreeSet<String> {
    match refusal.split_once(" has ") {
        Some((_, list)) => list.split(", ").map(ToOwned::to_owned).collect(),
        // Message of serde: expected one of `a`, `b`, or `a` or `b`.
        None => refusal
            .split_once("expected")
            .map_or("", |(_, list)| list)
            .split('`')
            .skip(1)
            .step_by(2)
            .map(ToOwned::to_owned)
            .collect(),
    }
}

#[tokio::test]
async fn the_table_of_each_sink_has_its_fields_and_no_other() {
    let registry = crate::sinks::every_sink();
    let pages = sinks();
    let documented: BTreeSet<_> = pages.keys().map(String::as_str).collect();
    assert_eq!(documented, registry.kinds().collect::<BTreeSet<_>>());
    for (kind, page) in &pages {
        assert!(page.text.starts_with(&format!("# {kind}\n")), "{}: its heading is its kind", page.name);
        let refusal =
            registry.bind(kind, &json!({ "no_such_field": 1, "url": "http://127.0.0.1/" })).unwrap_err();
        let documented: BTreeSet<_> = first_table(&page.text).into_iter().collect();
        assert_eq!(
            documented,
            known(refusal.as_str()),
            "the table of {}; the message of the sink: {refusal}",
            page.name
        );
    }
}

#[tokio::test]
async fn every_block_of_sql_runs_as_the_role_that_it_names() {
    let (mut ran, mut pages) = (0, 0);
    for page in book().into_values().chain([Page::read("README.md")]) {
        let blocks: Vec<_> = page.blocks().into_iter().filter(|block| block.language == "sql").collect();
        if blocks.is_empty() {
            continue;
        }
        let database = Database::new().await;
        let mut logins = Logins::new(&database);
        for block in &blocks {
            logins.run(&format!("{}, line {}", page.name, block.line), &block.text).await;
        }
        drop(logins);
        (ran, pages) = (ran + blocks.len(), pages + 1);
        database.drop().await;
    }
    assert!(ran > 45 && pages > 25, "{ran} blocks of {pages} pages");
}

#[tokio::test]
async fn the_example_of_each_sink_can_be_used() {
    let database = Database::new().await;
    let registry = crate::sinks::every_sink();
    let mut logins = Logins::new(&database);
    for page in sinks().into_values() {
        for block in page.blocks().into_iter().filter(|block| block.language == "sql") {
            logins.run(&format!("{}, line {}", page.name, block.line), &block.text).await;
        }
    }
    let rows: Vec<(String, String, Value)> =
        sqlx::query_as("select name, sink, config from outbox.subscriptions")
            .fetch_all(&database.pool)
            .await
            .unwrap();
    let exercised: BTreeSet<_> = rows.iter().map(|(_, sink, _)| sink.as_str()).collect();
    let all: BTreeSet<_> = registry.kinds().filter(|kind| *kind != "handler").collect();
    assert_eq!(exercised, all);
    for (name, sink, config) in &rows {
        registry.bind(sink, config).map(drop).unwrap_or_else(|problem| panic!("{name}: {problem}"));
    }
    drop(logins);
    database.drop().await;
}

#[tokio::test]
async fn every_piece_of_configuration_is_taken_and_every_file_of_subscriptions_can_be_applied() {
    let database = Database::new().await;
    let reference = Regex::new(r#""(?:env|file):[^"]*""#).unwrap();
    let mut seen = 0;
    for page in book().into_values() {
        for block in page.blocks().into_iter().filter(|block| block.language == "toml") {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("example.toml");
            // The target of a reference does not exist here.
            let text = reference.replace_all(&block.text, "\"postgres://user:password@127.0.0.1:1/billing\"");
            std::fs::write(&path, text.as_bytes()).unwrap();
            let path = path.to_str().unwrap();
            let (output, expected) = if block.text.contains("[[subscriptions]]") {
                (database.pgoutbox(&["subscriptions", "apply", "--dry-run", "--file", path]), 0)
            } else {
                let mut check = Command::new(env!("CARGO_BIN_EXE_pgoutbox"));
                check.args(["check", "--config", path]).env_clear().stdin(Stdio::null());
                // Sources have addresses of their own.
                if !block.text.contains("[[source]]") {
                    check.env("DATABASE_URL", "postgres://postgres@127.0.0.1:1/nothing");
                }
                // Only the database cannot be reached.
                (check.output().unwrap(), 69)
            };
            assert!(
                output.status.code() == Some(expected),
                "{}, line {}: {output:?}\n{}",
                page.name,
                block.line,
                block.text
            );
            seen += 1;
        }
    }
    assert!(seen >= 8, "{seen} blocks of TOML");
    database.drop().await;
}

/// The test helpers of docs/test.md work as documented.
#[tokio::test]
async fn what_the_current_transaction_has_published_is_shown_also_across_savepoints() {
    let database = Database::new().await;
    database.execute("select outbox.publish('earlier', '{}')").await;
    let mut connection = database.connection().await;
    let published =
        "begin; select outbox.publish('first', '{}'); savepoint one; select outbox.publish('second', '{}');
                     release one; savepoint two; select outbox.publish('undone', '{}'); rollback to two";
    connection.execute(published).await.unwrap();
    let query = "select topic::text from outbox.published()";
    assert!(Page::read("docs/test.md").text.contains("from outbox.published();"));
    let topics: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
    assert_eq!(topics, ["first", "second"]);
    connection.execute("rollback").await.unwrap();
    assert_eq!(database.count("select count(*) from outbox.events").await, 1);
    drop(connection);
    database.drop().await;
}
