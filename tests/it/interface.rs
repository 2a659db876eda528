//! What somebody sees who looks into the schema `outbox`, and what is said about a wrong value.

use std::collections::BTreeSet;

use sqlx::{ConnectOptions as _, Connection as _, Executor as _, postgres::PgDatabaseError};

use crate::support::Database;

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
    let long = "repeat('x', 600)";
    for (sql, code, message) in [
        ("select outbox.publish('Shop Orders', '1')".to_owned(), "23514", "topic: 'Shop Orders' is not a topic"),
        ("select outbox.publish('shop.*', '1')".to_owned(), "23514", "topic: 'shop.*' is not a topic"),
        ("select outbox.publish('', '1')".to_owned(), "23514", "topic: '' is not a topic"),
        ("select outbox.publish(null, '1')".to_owned(), "23502", "topic: is null"),
        ("select outbox.publish('a.b', null)".to_owned(), "23502", "payload: is null"),
        (format!("select outbox.publish('a.b', '1', {long})"), "23514", "key: has 600 characters"),
        (format!("select outbox.publish('a.b', to_jsonb(repeat('x', 262143)))"), "23514", "payload: has 262145 bytes as text"),
        ("select outbox.publish('a.b', '1', headers => '{\"A\": \"b\"}')".to_owned(), "23514", "headers: {\"A\": \"b\"} cannot be sent"),
        ("select outbox.publish('a.b', '1', organization => '')".to_owned(), "23514", "organization: has 0 characters"),
        (format!("select outbox.publish('a.b', '1', source => {long})"), "23514", "source: has 600 characters"),
        (format!("select outbox.publish('a.b', '1', user_id => {long})"), "23514", "user_id: has 600 characters"),
        ("select outbox.publish('a.b', '1', priority => 1001)".to_owned(), "23514", "priority: 1001 is not between 0 and 1000"),
        ("select outbox.publish('a.b', '1', deliver_after => 'infinity')".to_owned(), "23514", "deliver_after: infinity is not between"),
        ("insert into outbox.events (topic, payload) values ('a b', '1')".to_owned(), "23514", "topic: 'a b' is not a topic"),
        (format!("insert into outbox.events (topic, payload, key) values ('a.b', '1', {long})"), "23514", "key: has 600"),
        ("select outbox.published('a..b')".to_owned(), "22023", "topic: 'a..b' is not a topic pattern"),
        ("select outbox.subscribe('x', '{a..b}', 'webhook')".to_owned(), "22023", "topics: 'a..b' is not a topic pattern"),
        ("select outbox.subscribe('x', '{shop orders}', 'webhook')".to_owned(), "22023", "topics: 'shop orders' is not"),
        ("select outbox.subscribe('a/b', '{**}', 'webhook')".to_owned(), "22023", "name: 'a/b' is not a subscription name"),
        ("select outbox.subscribe('x', '{**}', 'webhook')".to_owned(), "22023", "config.url: subscription 'x' (webhook) needs"),
        ("select outbox.subscribe('x', '{**}', 'webhook', '{\"url\": \"https://a\"}', retry => '{\"most\": 1}')".to_owned(), "22023", "retry.most: unknown key"),
        ("select outbox.define_event_type('a b')".to_owned(), "22023", "topic: 'a b' is not a topic pattern"),
        ("select outbox.capture('pg_class', topic => 'a b')".to_owned(), "42809", "table: pg_class is a system table"),
        ("select outbox.redrive(topic => 'a b')".to_owned(), "22023", "topic: 'a b' is not a topic pattern"),
    ] {
        let error = database.pool.execute(sqlx::AssertSqlSafe(sql.clone())).await.expect_err(&sql);
        let error = error.as_database_error().unwrap().downcast_ref::<PgDatabaseError>();
        assert_eq!(error.code(), code, "{sql}: {error:?}");
        assert!(error.message().starts_with(message), "{sql}: {}", error.message());
        assert!(error.hint().is_some_and(|hint| hint.len() > 10), "{sql}: {error:?}");
        assert_eq!(error.detail(), None, "{sql}");
        let context = error.r#where().unwrap_or_default();
        assert!(!context.contains("insert into") && context.lines().count() <= 3, "{sql}: {context}");
    }
    assert_eq!(database.count("select count(*) from outbox.events").await, 0);
    database.drop().await;
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
