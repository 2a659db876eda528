//! What somebody sees who looks into the schema `outbox`, and what is said about a wrong value.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _, postgres::PgDatabaseError};

use crate::{sinks::every_sink, support::Database};

#[tokio::test]
async fn the_functions_of_the_schema_are_those_of_the_reference_and_each_says_what_it_does() {
    let database = Database::new().await;
    let functions: Vec<(String, Option<String>)> = sqlx::query_as(
        "select proname::text, obj_description(oid, 'pg_proc') from pg_proc \
          where pronamespace = 'outbox'::regnamespace",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap();
    for (name, comment) in &functions {
        assert!(comment.as_ref().is_some_and(|comment| comment.len() > 20), "{name}: {comment:?}");
    }
    let known: BTreeSet<String> = functions.into_iter().map(|(name, _)| name).collect();
    let reference = include_str!("../../docs/reference/sql.md");
    let named = regex::Regex::new(r"`outbox\.([a-z_]+)\(").unwrap();
    let named: BTreeSet<String> =
        named.captures_iter(reference).map(|found| found.extract::<1>().1[0].to_owned()).collect();
    assert_eq!(known, named);
    database.drop().await;
}

#[tokio::test]
async fn a_wrong_value_is_refused_with_its_field_and_what_to_write_and_without_our_statements() {
    let database = Database::new().await;
    for (call, code, message) in [
        ("outbox.publish('Shop Orders', '1')", "23514", "topic: 'Shop Orders' is not a topic"),
        ("outbox.publish('shop.*', '1')", "23514", "topic: 'shop.*' is not a topic"),
        ("outbox.publish('', '1')", "23514", "topic: '' is not a topic"),
        ("outbox.publish(null, '1')", "23502", "topic: is null"),
        ("outbox.publish('a.b', null)", "23502", "payload: is null"),
        ("outbox.publish('a.b', '1', repeat('x', 600))", "23514", "key: has 600 characters"),
        (
            "outbox.publish('a.b', to_jsonb(repeat('x', 262143)))",
            "23514",
            "payload: has 262145 bytes as text",
        ),
        (
            "outbox.publish('a.b', '1', headers => '{\"A\": 1}')",
            "23514",
            "headers: {\"A\": 1} cannot be sent",
        ),
        ("outbox.publish('a.b', '1', organization => '')", "23514", "organization: has 0 characters"),
        ("outbox.publish('a.b', '1', source => repeat('x', 600))", "23514", "source: has 600 characters"),
        ("outbox.publish('a.b', '1', user_id => repeat('x', 600))", "23514", "user_id: has 600 characters"),
        ("outbox.publish('a.b', '1', priority => 1001)", "23514", "priority: 1001 is not between 0 and 1000"),
        (
            "outbox.publish('a.b', '1', deliver_after => 'infinity')",
            "23514",
            "deliver_after: infinity is not between",
        ),
        ("outbox.published('a..b')", "22023", "topic: 'a..b' is not a topic pattern"),
        ("outbox.subscribe('x', '{a..b}', 'webhook')", "22023", "topics: 'a..b' is not a topic pattern"),
        ("outbox.subscribe('x', '{shop orders}', 'webhook')", "22023", "topics: 'shop orders' is not"),
        ("outbox.subscribe('a/b', '{**}', 'webhook')", "22023", "name: 'a/b' is not a subscription name"),
        ("outbox.subscribe('x', '{**}', 'webhook')", "22023", "config.url: subscription 'x' (webhook) needs"),
        (
            "outbox.subscribe('x', '{**}', 'stdout', retry => '{\"most\": 1}')",
            "22023",
            "retry.most: unknown key",
        ),
        ("outbox.define_event_type('a b')", "22023", "topic: 'a b' is not a topic pattern"),
        ("outbox.capture('pg_class')", "42809", "table: pg_class is a system table"),
        ("outbox.redrive(topic => 'a b')", "22023", "topic: 'a b' is not a topic pattern"),
    ] {
        let sql = if call.starts_with("outbox.published") { "select * from " } else { "select " };
        refused(&database, &format!("{sql}{call}"), code, message).await;
    }
    let insert = "insert into outbox.events (topic, payload, key) values ";
    refused(&database, &format!("{insert} ('a b', '1', null)"), "23514", "topic: 'a b' is not a topic").await;
    refused(&database, &format!("{insert} ('a', '1', repeat('x', 600))"), "23514", "key: has 600").await;
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    database.drop().await;
}

/// Runs a statement that must be refused so.
async fn refused(database: &Database, sql: &str, code: &str, message: &str) {
    let error = database.pool.execute(sqlx::AssertSqlSafe(sql)).await.expect_err(sql);
    let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
    assert_eq!(error.code(), code, "{sql}: {error:?}");
    assert!(error.message().starts_with(message), "{sql}: {}", error.message());
    assert!(error.hint().is_some_and(|hint| hint.len() > 10), "{sql}: {error:?}");
    assert_eq!(error.detail(), None, "{sql}");
    let context = error.r#where().unwrap_or_default();
    assert!(!context.contains("insert into") && context.lines().count() <= 3, "{sql}: {context}");
}

#[tokio::test]
async fn a_publisher_sees_what_its_transaction_has_published_and_nothing_else() {
    let database = Database::new().await;
    let publisher = format!("publisher_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(format!(
            "create role {publisher} login in role outbox_publisher;
             create table orders (id int primary key); grant insert on orders to {publisher};
             select outbox.capture('orders'); select outbox.publish('earlier', '1')"
        ))
        .await;
    let mut connection = database.options.clone().username(&publisher).connect().await.unwrap();
    let topics = async |connection: &mut sqlx::PgConnection, pattern: &str| -> Vec<String> {
        let query = format!("select topic::text from outbox.published({pattern})");
        sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_all(connection).await.unwrap()
    };
    assert_eq!(topics(&mut connection, "").await, Vec::<String>::new());
    connection
        .execute("begin; select outbox.publish('shop.sold', '1'); insert into orders values (1)")
        .await
        .unwrap();
    assert_eq!(topics(&mut connection, "").await, ["shop.sold", "public.orders.create"]);
    assert_eq!(topics(&mut connection, "'shop.*'").await, ["shop.sold"]);
    let refused = connection.execute("select * from outbox.events").await.unwrap_err().to_string();
    assert!(refused.contains("permission denied"), "{refused}");
    connection.close().await.unwrap();
    database.execute(format!("drop owned by {publisher}; drop role {publisher}")).await;
    database.drop().await;
}

/// A config without optional fields.
fn least(sink: &str) -> Value {
    match sink {
        "webhook" => json!({ "url": "https://example.com/hooks" }),
        "function" => json!({ "function": "shop.on_order" }),
        "kafka" => json!({ "topic": "events" }),
        "nats" => json!({ "subject": "events" }),
        "redis" => json!({ "stream": "events" }),
        "file" => json!({ "path": "events" }),
        "handler" => json!({ "handler": "product-cache" }),
        _ => json!({}),
    }
}

#[tokio::test]
async fn the_sinks_of_the_database_and_their_fields_are_those_of_the_code() {
    type Row = (String, Option<String>, Option<Vec<String>>, Option<bool>);
    let database = Database::new().await;
    let fields = "select * from outbox_internal.sink_fields()";
    let rows: Vec<Row> = sqlx::query_as(fields).fetch_all(&database.pool).await.unwrap();
    let registry = every_sink();
    let known: BTreeSet<&str> = rows.iter().map(|(sink, ..)| sink.as_str()).collect();
    assert_eq!(known, registry.kinds().collect());
    for sink in known {
        let with = |field: &str, value: Value| {
            let mut config = least(sink);
            config[field] = value;
            config
        };
        let refusal = |config: &Value| {
            registry.bind(sink, config).err().map(|problem| problem.to_string()).unwrap_or_default()
        };
        assert_eq!(refusal(&least(sink)), "", "{sink}");
        let fields: Vec<&Row> = rows.iter().filter(|row| row.0 == sink && row.1.is_some()).collect();
        // What the code says of a field that it does not know: every name of one that it does.
        let said = refusal(&with("no_such_field", json!(1)));
        let (_, said) = said.split_once("no_such_field").expect("it is named");
        let words = said.split(|letter: char| !(letter.is_ascii_lowercase() || letter == '_'));
        let others = " unknown field a there are no fields expected one of or has ";
        let is_field = |word: &str| fields.iter().any(|row| row.1.as_deref() == Some(word));
        let named: BTreeSet<&str> = words
            .filter(|word| is_field(word) || *word != sink && !others.contains(&format!(" {word} ")))
            .filter(|word| !word.is_empty())
            .collect();
        let stored = fields.iter().filter_map(|row| row.1.as_deref());
        let stored: BTreeSet<&str> = stored.filter(|field| *field != "connection").collect();
        assert_eq!(stored, named, "{sink}: {said}");
        for (_, field, types, is_required) in fields {
            let (field, types) = (field.as_deref().unwrap(), types.as_ref().unwrap());
            for (name, value) in [
                ("string", json!("5s")),
                ("number", json!(1)),
                ("boolean", json!(true)),
                ("object", json!({})),
                ("array", json!([])),
            ] {
                let said = refusal(&with(field, value));
                if types.iter().any(|known| known == name) {
                    assert!(!said.contains("invalid type"), "{sink}.{field} as {name}: {said}");
                } else {
                    assert_ne!(said, "", "{sink}.{field} as {name} is accepted by the code");
                }
            }
            let is_missing = least(sink).get(field).is_some();
            assert_eq!(is_required, &Some(is_missing), "{sink}.{field}");
        }
    }
    database.drop().await;
}

#[tokio::test]
async fn a_misspelt_sink_or_field_is_refused_at_once_and_a_sink_of_ones_own_is_declared() {
    let database = Database::new().await;
    for (sink, config, message, hint) in [
        (
            "webhok",
            json!({ "url": "https://a" }),
            "sink: there is no sink 'webhok'",
            "outbox.declare_sink('webhok')",
        ),
        (
            "webhook",
            json!({ "urll": "https://a" }),
            "config.urll: unknown field",
            "has url (required), method, headers",
        ),
        (
            "webhook",
            json!({ "url": "https://a", "timeout": 5 }),
            "config.timeout: must be string, not number",
            "timeout",
        ),
        (
            "webhook",
            json!({ "url": "https://a", "secret": {} }),
            "config.secret: must be string or array, not object",
            "secret",
        ),
        ("kafka", json!({ "key": "a" }), "config.topic: is missing", "{\"topic\": "),
        ("stdout", json!({ "key": "a" }), "config.key: unknown field", "stdout has no fields"),
    ] {
        let query = sqlx::query("select outbox.subscribe('x', '{**}', $1, $2)").bind(sink).bind(&config);
        let error = query.execute(&database.pool).await.unwrap_err();
        let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
        assert_eq!((error.code(), error.message()), ("22023", message), "{sink} {config}");
        assert!(error.hint().is_some_and(|said| said.contains(hint)), "{sink} {config}: {error:?}");
    }
    let null = r#"select outbox.subscribe('n', '{**}', 'kafka', '{"topic": "a", "key": null}')"#;
    database.execute(null).await;
    let own = "select outbox.subscribe('own', '{**}', 'search', '{\"anything\": [1]}')";
    assert!(database.pool.execute(own).await.is_err());
    let declare = "select outbox.declare_sink('search')::int::bigint";
    assert_eq!(database.count(declare).await, 1);
    assert_eq!(database.count(declare).await, 0, "the second time");
    database.execute(own).await;
    database.drop().await;
}
