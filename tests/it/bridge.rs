//! Rows of an outbox table that an application has already become events.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, PgConnection};

use crate::support::Database;

/// A login that may only write tables of the schema public.
async fn writer(database: &Database) -> (String, PgConnection) {
    let name = format!("writer_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(format!("create role {name} login; grant all on all tables in schema public to {name}"))
        .await;
    let connection = database.options.clone().username(&name).connect().await.unwrap();
    (name, connection)
}

/// Topic, key and payload of the events since the last call.
async fn events(database: &Database) -> Vec<(String, Option<String>, Value)> {
    sqlx::query_as(
        "with taken as (delete from outbox.events returning position, topic, key, payload)
         select topic::text, key::text, payload::jsonb from taken order by position",
    )
    .fetch_all(&database.pool)
    .await
    .unwrap()
}

const DEBEZIUM: &str = "create table outbox_rows (id uuid primary key, aggregatetype text, aggregateid text,
                                                  type text, payload jsonb);
                        select outbox.bridge('outbox_rows')";

#[tokio::test]
async fn the_rows_of_a_debezium_outbox_are_events_with_their_ids_and_only_if_they_are_committed() {
    let database = Database::new().await;
    database.execute(DEBEZIUM).await;
    let (name, mut writer) = writer(&database).await;
    let (one, two) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    writer
        .execute(AssertSqlSafe(format!(
            "set outbox.organization = 'acme'; set outbox.traceparent = '00-a-b-01';
             insert into outbox_rows values ('{one}', 'Order', '17', 'order.created', '{{\"n\": 1}}'),
                                            ('{two}', 'my shop', null, '..x*', null);
             insert into outbox_rows select * from outbox_rows where false"
        )))
        .await
        .unwrap();
    let undone = "begin; insert into outbox_rows values (gen_random_uuid(), 'a', 'b', 'c', '1'); rollback";
    writer.execute(undone).await.unwrap();
    let ids: Vec<uuid::Uuid> = sqlx::query_scalar("select id from outbox.events order by position")
        .fetch_all(&database.pool)
        .await
        .unwrap();
    assert_eq!(ids, [one, two]);
    let tenants = "select count(*) from outbox.events \
                    where organization = 'acme' and headers = '{\"traceparent\": \"00-a-b-01\"}'";
    assert_eq!(database.count(tenants).await, 2);
    let made = events(&database).await;
    assert_eq!(made[0], ("Order.order.created".into(), Some("17".into()), json!({ "n": 1 })));
    assert_eq!(made[1], ("my_shop._._.x_".into(), None, Value::Null));

    // A call that changes nothing keeps the trigger; a release ends it.
    let trigger = "select oid::bigint from pg_trigger where tgname = 'outbox_bridge'";
    let before = database.count(trigger).await;
    database.execute("select outbox.bridge('outbox_rows')").await;
    assert_eq!(database.count(trigger).await, before);
    database.execute("select outbox.bridge('outbox_rows', topic => 'shop.{type}')").await;
    writer.execute("insert into outbox_rows values (gen_random_uuid(), 'a', 'b', 'c', '1')").await.unwrap();
    assert_eq!(events(&database).await, [("shop.c".into(), Some("b".into()), json!(1))]);
    assert_eq!(database.count("select outbox.release('outbox_rows')::int::bigint").await, 1);
    writer.execute("insert into outbox_rows values (gen_random_uuid(), 'a', 'b', 'c', '1')").await.unwrap();
    assert_eq!(events(&database).await, []);
    writer.close().await.unwrap();
    database.execute(format!("drop owned by {name}; drop role {name}")).await;
    database.drop().await;
}

#[tokio::test]
async fn columns_of_any_type_and_name_are_taken_as_text_and_fail_no_write() {
    let database = Database::new().await;
    database
        .execute(
            "create type mood as enum ('fine day');
             create function hostile(mood) returns json language plpgsql as $$
                 begin raise exception 'called'; end $$;
             create cast (mood as json) with function hostile(mood);
             create table messages (\"the 'id\" bigint primary key, \"a}b\" int, kind mood, body text, doc json);
             select outbox.bridge('messages', topic => '{kind}.of.{the ''id}', key => 'the ''id', payload => 'body')",
        )
        .await;
    let (name, mut writer) = writer(&database).await;
    writer
        .execute(
            "insert into messages values (1, 2, 'fine day', '{\"n\": 1.50}'), (2, 2, null, 'no json'),
                                         (3, 2, null, null), (4, 2, null, '\"\\u0000\"')",
        )
        .await
        .unwrap();
    let made = events(&database).await;
    let topics: Vec<&str> = made.iter().map(|(topic, ..)| topic.as_str()).collect();
    assert_eq!(topics, ["fine_day.of.1", "_.of.2", "_.of.3", "_.of.4"]);
    let payloads: Vec<&Value> = made.iter().map(|(.., payload)| payload).collect();
    assert_eq!(payloads, [&json!({ "n": 1.5 }), &json!("no json"), &Value::Null, &json!("\"\\u0000\"")]);
    assert_eq!(made[1].1.as_deref(), Some("2"));

    database.execute("select outbox.bridge('messages', topic => 'docs.{kind}', payload => 'doc')").await;
    let nul = "insert into messages (\"the 'id\", kind, doc) values (5, 'fine day', '{\"a\": \"\\u0000\"}')";
    writer.execute(nul).await.unwrap();
    let made = events(&database).await;
    assert_eq!(made, [("docs.fine_day".into(), None, json!("{\"a\": \"\\u0000\"}"))]);
    // A column that gets another type is followed.
    database.execute("alter table messages alter kind type text").await;
    let long =
        format!("insert into messages (\"the 'id\", kind, doc) values (6, '{}', '[1]')", "x.".repeat(200));
    writer.execute(AssertSqlSafe(long)).await.unwrap();
    let made = events(&database).await;
    let (topic, key, payload) = made.last().unwrap();
    assert!(topic.len() <= 255 && topic.ends_with(".x"), "{topic}");
    assert_eq!((key, payload), (&None, &json!([1])));
    writer.close().await.unwrap();
    database.execute(format!("drop owned by {name}; drop role {name}")).await;
    database.drop().await;
}

#[tokio::test]
async fn a_bridge_that_cannot_be_is_refused_with_the_argument_and_what_to_write() {
    let database = Database::new().await;
    let stranger = format!("stranger_{}", uuid::Uuid::new_v4().simple());
    database
        .execute(format!(
            "create role {stranger} login in role outbox_publisher; create view seen as select 1 as payload;
             create table own (id bigint, kind text, body text); create table plain (payload jsonb)"
        ))
        .await;
    for (call, message) in [
        ("null", "table: null is not a table"),
        ("'seen', topic => 'a'", "table: public.seen is not a table"),
        ("'outbox.events', topic => 'a'", "table: outbox.events is not a table"),
        ("'own', payload => 'body'", "topic: is needed for table public.own"),
        ("'own', topic => 'a'", "payload: is needed"),
        ("'own', topic => 'a', payload => 'nothing'", "payload: table public.own has no column 'nothing'"),
        ("'own', topic => 'a', payload => 'body', key => 'n'", "key: table public.own has no column 'n'"),
        ("'own', topic => 'a', payload => 'body', id => 'n'", "id: table public.own has no column 'n'"),
        ("'own', topic => 'a.{n}', payload => 'body'", "topic: table public.own has no column 'n'"),
        ("'plain', topic => 'a b'", "topic: 'a b' is not a topic"),
        ("'plain', topic => 'a.{payload'", "topic: 'a.{payload' is not a topic"),
        ("'plain', topic => 'a..b'", "topic: 'a..b' is not a topic"),
    ] {
        let sql = format!("select outbox.bridge({call})");
        let error = database.pool.execute(AssertSqlSafe(sql)).await.expect_err(call);
        let error = error.as_database_error().unwrap().message().to_owned();
        assert!(error.starts_with(message), "{call}: {error}");
    }
    let mut other = database.options.clone().username(&stranger).connect().await.unwrap();
    let refused = other.execute("select outbox.bridge('plain', topic => 'a')").await.unwrap_err();
    assert!(refused.to_string().contains("must be owner of table public.plain"), "{refused}");
    other.close().await.unwrap();
    database.execute("select outbox.bridge('plain', topic => 'a')").await;
    let large = "insert into plain values (to_jsonb(repeat('x', 300000)))";
    let refused = database.pool.execute(large).await.unwrap_err().to_string();
    assert!(refused.contains("payload: has 300002 bytes as text"), "{refused}");
    database.execute(format!("drop owned by {stranger}; drop role {stranger}")).await;
    database.drop().await;
}
