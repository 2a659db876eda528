//! Drivers of other languages publish in their transactions. docs/drivers.md has their snippets, and what
//! became of each call; `UPDATE_DOCS=1 cargo test --test it drivers` writes both.

use std::{collections::BTreeMap, fs, path::Path};

use serde::Deserialize;
use sqlx::Executor as _;
use tokio::sync::OnceCell;
use uuid::Uuid;

use crate::{
    docs::{
        Page,
        tables::{assert_between, assert_table},
    },
    support::{Database, clients},
};

const PAGE: &str = "docs/drivers.md";

/// Drivers and their scripts in `tests/clients/drivers`, in the order of the page.
const DRIVERS: &[(&str, &str)] = &[
    ("psycopg 3", "psycopg3.py"),
    ("psycopg2", "psycopg2_.py"),
    ("asyncpg", "asyncpg_.py"),
    ("SQLAlchemy", "sqlalchemy_.py"),
    ("SQLAlchemy, asyncio", "sqlalchemy_asyncio.py"),
    ("Django", "django_.py"),
    ("node-postgres", "pg_.mjs"),
    ("postgres.js", "postgres_js.mjs"),
    ("Knex", "knex_.mjs"),
    ("TypeORM", "typeorm_.mjs"),
    ("Prisma", "prisma_.mjs"),
    ("JDBC", "Jdbc.java"),
    ("Rails", "rails.rb"),
    ("pgx", "pgx.go"),
];

/// Labels of keys that are strings, in any language.
const STRINGS: &[&str] = &["str", "string", "String", "setString"];

/// A line that a script prints.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Published { id: Uuid },
    Repeated { repeated: String },
    Tried(Call),
}

/// A call with one kind of parameter, in a transaction of its own.
#[derive(Debug, Deserialize)]
struct Call {
    /// The argument that is tried.
    argument: String,
    /// How the script made its value.
    given: String,
    /// Which call: 0 as it is, 1 with a cast, 2 a plain insert.
    call: usize,
    /// Topic of its event.
    topic: String,
    /// Message of the error.
    error: Option<String>,
    /// JSON type of the payload of its event.
    #[serde(skip)]
    payload: Option<String>,
}

/// What became of the calls of one driver.
#[derive(Debug)]
struct Driver {
    name: &'static str,
    /// The error when the transaction with an event could not commit.
    repeated: Option<String>,
    /// Key, payload and transaction of each event of the topic of its orders.
    events: Vec<(String, serde_json::Value, bool)>,
    calls: Vec<Call>,
}

/// Each script is run once for all tests.
async fn ran() -> &'static [Driver] {
    static RAN: OnceCell<Vec<Driver>> = OnceCell::const_new();
    RAN.get_or_init(async || {
        let database = Database::new().await;
        let login = format!("publisher_{}", Uuid::new_v4().simple());
        database
            .execute(format!(
                "create table orders (id integer primary key deferrable initially deferred, total integer not null);
                 create role {login} login in role outbox_publisher;
                 grant insert on orders to {login}"
            ))
            .await;
        let url = database.plain_url().replace("postgres@", &format!("{login}@"));
        let mut drivers = Vec::new();
        for (order, (name, script)) in (1001..).zip(DRIVERS) {
            drivers.push(run(&database, &url, order, name, script).await);
        }
        database.drop().await;
        drivers
    })
    .await
}

async fn run(database: &Database, url: &str, order: i32, name: &'static str, script: &str) -> Driver {
    let number = order.to_string();
    let settings = [("DATABASE_URL", url), ("ORDER", number.as_str())];
    let path = format!("drivers/{script}");
    let printed = match script.rsplit('.').next() {
        Some("py") => clients::python(&path, &settings).await,
        Some("mjs") => clients::node(&path, &settings).await,
        Some("java") => clients::java(&path, &settings).await,
        Some("go") => clients::go(&path, &settings).await,
        _ => clients::ruby(&path, &settings).await,
    };
    let mut driver = Driver { name, repeated: None, events: Vec::new(), calls: Vec::new() };
    let events = "select key::text, payload::jsonb, events.id = $2 and orders.xmin::text = events.xid::text
                    from outbox.events join orders on orders.id = $1
                   where topic = 'shop.orders.create' and payload -> 'id' = to_jsonb($1)";
    for line in printed.lines() {
        let line = serde_json::from_str(line).unwrap_or_else(|error| panic!("{script}: {error}: {line}"));
        match line {
            Line::Published { id } => {
                driver.events =
                    sqlx::query_as(events).bind(order).bind(id).fetch_all(&database.pool).await.unwrap();
            }
            Line::Repeated { repeated } => driver.repeated = Some(repeated),
            Line::Tried(mut call) => {
                let payload = "select jsonb_typeof(payload) from outbox.events where topic = $1";
                call.payload = sqlx::query_scalar(payload)
                    .bind(&call.topic)
                    .fetch_optional(&database.pool)
                    .await
                    .unwrap();
                assert_eq!(call.error.is_some(), call.payload.is_none(), "{name}: {call:?}");
                driver.calls.push(call);
            }
        }
    }
    driver
}

#[tokio::test]
async fn each_driver_publishes_in_its_transaction_and_nothing_when_the_commit_fails() {
    for (order, driver) in (1001..).zip(ran().await) {
        let repeated = driver.repeated.as_deref().unwrap_or_default();
        assert!(
            repeated.contains("nique") || repeated.contains("duplicate key"),
            "{}: {repeated:?}",
            driver.name
        );
        let expected = (order.to_string(), serde_json::json!({ "id": order, "total": 2500 }), true);
        assert_eq!(driver.events, [expected], "{}: key, payload, the transaction of the order", driver.name);
    }
}

#[tokio::test]
async fn a_key_that_is_a_string_needs_no_cast() {
    for driver in ran().await {
        let calls = driver.calls.iter().filter(|call| call.argument == "key");
        let strings: Vec<_> = calls.filter(|call| STRINGS.contains(&call.given.as_str())).collect();
        assert_eq!(strings.len(), 3, "{}", driver.name);
        assert!(strings.iter().all(|call| call.error.is_none()), "{}: {strings:?}", driver.name);
    }
}

/// One test for all parts of the page, because it writes them.
#[tokio::test]
async fn the_page_has_the_snippet_of_each_driver_and_what_became_of_each_call() {
    for (_, script) in DRIVERS {
        let (stem, extension) = script.split_once('.').unwrap();
        let language = match extension {
            "py" => "python",
            "mjs" => "js",
            "rb" => "ruby",
            other => other,
        };
        assert_between(PAGE, stem, &format!("```{language}\n{}```\n", snippet(script)));
    }
    let drivers = ran().await;
    for (argument, head) in [
        ("payload", "| driver | payload given as | `publish(…)` | with `cast(… as jsonb)` | plain insert |"),
        ("key", "| driver | key given as | `publish(…)` | with `cast(… as text)` | plain insert |"),
    ] {
        assert_table(PAGE, argument, head, &rows(drivers, argument));
    }
}

#[tokio::test]
async fn the_page_explains_the_message_of_each_call_that_fails() {
    let section = Page::read(PAGE).section("## Messages");
    let mut explained: BTreeMap<String, usize> = BTreeMap::new();
    for row in section.prose().lines().filter(|line| line.starts_with("| `")) {
        explained.insert(row.split('`').nth(1).unwrap().to_owned(), 0);
    }
    for driver in ran().await {
        for call in &driver.calls {
            let Some(error) = &call.error else { continue };
            let fits = |said: &str| said.split(" … ").all(|part| error.contains(part));
            let found = explained.iter_mut().find(|(said, _)| fits(said));
            let (_, count) =
                found.unwrap_or_else(|| panic!("{}: the page does not explain {error}", driver.name));
            *count += 1;
        }
    }
    assert!(explained.values().all(|count| *count > 0), "messages that no driver gave: {explained:?}");
}

/// Why there is one function, whose payload is `jsonb`.
#[tokio::test]
async fn a_second_function_to_publish_is_ambiguous_or_takes_parameters_without_a_type_as_text() {
    for (payload, expected) in [
        (None, Ok("jsonb")),
        (Some("json"), Err("is not unique")),
        (Some("anyelement"), Err("is not unique")),
        (Some("text"), Ok("text")),
    ] {
        let database = Database::new().await;
        if let Some(payload) = payload {
            let second = format!(
                "create function outbox.publish(topic text, payload {payload}, key text default null)
                     returns uuid language sql as 'select null::uuid'"
            );
            database.execute(second).await;
        }
        let mut connection = database.connection().await;
        let prepared = connection.execute("prepare asked as select outbox.publish($1, $2, key => 'k')").await;
        let types = "select parameter_types[2]::text from pg_prepared_statements where name = 'asked'";
        match (prepared, expected) {
            (Ok(_), Ok(expected)) => {
                let found: String = sqlx::query_scalar(types).fetch_one(&mut connection).await.unwrap();
                assert_eq!(found, expected, "{payload:?}");
            }
            (Err(error), Err(expected)) => {
                assert!(error.to_string().contains(expected), "{payload:?}: {error}")
            }
            (prepared, _) => panic!("{payload:?}: {prepared:?}"),
        }
        drop(connection);
        database.drop().await;
    }
}

/// The lines of a script between its two markers, without their common indent.
fn snippet(script: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/drivers").join(script);
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().skip_while(|line| !line.ends_with("docs:begin")).skip(1);
    let lines: Vec<_> = lines.take_while(|line| !line.ends_with("docs:end")).collect();
    assert!(!lines.is_empty(), "{script} has a part for the book");
    let indent = lines[0].len() - lines[0].trim_start().len();
    lines.iter().map(|line| format!("{}\n", line.get(indent..).unwrap_or_default())).collect()
}

/// A row for each way to give an argument.
fn rows(drivers: &[Driver], argument: &str) -> Vec<String> {
    let mut rows: Vec<String> = Vec::new();
    for driver in drivers {
        let calls = driver.calls.iter().filter(|call| call.argument == argument);
        for call in calls.filter(|call| argument == "payload" || !STRINGS.contains(&call.given.as_str())) {
            if call.call == 0 {
                rows.push(format!("| {} | `{}` |", driver.name, call.given));
            }
            let cell = format!(" {} |", outcome(call));
            rows.last_mut().expect("the first call of a row").push_str(&cell);
        }
    }
    rows
}

/// What became of a call, in one or two words.
fn outcome(call: &Call) -> &'static str {
    let error = call.error.as_deref().unwrap_or_default();
    match call.payload.as_deref() {
        Some("string") => "**a JSON string**",
        Some(_) => "works",
        None if error.contains("does not exist") => "no function",
        None if error.contains("but expression is of type") => "wrong type",
        None if error.contains("invalid input syntax for type json") => "no JSON",
        None => "refused by the driver",
    }
}
