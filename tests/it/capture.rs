//! Captured tables: each kind of change, made by a role without rights on the outbox, and the events it must
//! make.

mod cost;
mod options;
mod order;
mod problems;
mod property;
mod rights;
mod shapes;
mod values;
mod whole;

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row};

use crate::support::{Database, clients};

/// A login that may only write tables of the schema public.
const APPLICATION: &str = "capture_application";

/// An event as topic, key and payload.
type Event = (String, Option<String>, Value);

fn event(topic: &str, key: impl Into<Option<&'static str>>, payload: Value) -> Event {
    (topic.to_owned(), key.into().map(str::to_owned), payload)
}

/// A database and a connection of an application that writes to it.
struct Shop {
    database: Database,
    application: PgConnection,
}

impl Shop {
    /// A database in which the superuser has run this SQL.
    async fn new(sql: &str) -> Self {
        let database = Database::new().await;
        database
            .execute(format!(
                "do $$ begin create role {APPLICATION} login; exception when duplicate_object or unique_violation then null; end $$;
                 alter default privileges grant all on tables to {APPLICATION};
                 alter default privileges grant all on schemas to {APPLICATION}"
            ))
            .await;
        let application = database.options.clone().username(APPLICATION).connect().await.unwrap();
        let mut shop = Self { database, application };
        shop.owner(sql).await;
        shop
    }

    /// Runs statements as the superuser, who owns the tables.
    async fn owner(&mut self, sql: &str) {
        self.database
            .pool
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
    }

    /// The error of a statement of the owner.
    async fn refusal(&mut self, sql: &str) -> String {
        let error = self.database.pool.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect_err(sql);
        error.as_database_error().unwrap().message().to_owned()
    }

    /// Runs statements as the application. Returns the events they made.
    async fn write(&mut self, sql: &str) -> Vec<Event> {
        self.application
            .execute(sqlx::raw_sql(AssertSqlSafe(sql)))
            .await
            .unwrap_or_else(|error| panic!("{error}\n{sql}"));
        self.events().await
    }

    /// The events since the last call.
    async fn events(&self) -> Vec<Event> {
        let rows = sqlx::query(
            "with taken as (delete from outbox.events returning position, topic, key, payload)
             select topic::text, key::text, payload::jsonb as payload from taken order by position",
        )
        .fetch_all(&self.database.pool)
        .await
        .unwrap();
        rows.iter().map(|row| (row.get("topic"), row.get("key"), row.get("payload"))).collect()
    }

    /// The row of `outbox.captures` for a table.
    async fn captured(&self, table: &str) -> Value {
        let row = "select to_jsonb(c) from outbox.captures as c where c.\"table\" = $1";
        sqlx::query_scalar(row).bind(table).fetch_one(&self.database.pool).await.unwrap()
    }

    async fn end(self) {
        drop(self.application);
        self.database.drop().await;
    }
}

const ORDERS: &str = "create table orders (id int primary key, status text, total numeric);
                      select outbox.capture('orders');";

#[tokio::test]
async fn each_change_of_a_captured_table_is_an_event_and_an_update_without_change_is_none() {
    let mut shop = Shop::new(ORDERS).await;
    assert_eq!(
        shop.write("insert into orders values (1, 'new', 12.50), (2, 'new', null)").await,
        [
            event("public.orders.create", "1", json!({"row": {"id": 1, "status": "new", "total": 12.50}})),
            event("public.orders.create", "2", json!({"row": {"id": 2, "status": "new", "total": null}})),
        ]
    );
    assert_eq!(
        shop.write("update orders set status = 'paid', total = coalesce(total, 1)").await,
        [
            event(
                "public.orders.update",
                "1",
                json!({
                    "row": {"id": 1, "status": "paid", "total": 12.50},
                    "changed": ["status"], "previous": {"status": "new"},
                })
            ),
            event(
                "public.orders.update",
                "2",
                json!({
                    "row": {"id": 2, "status": "paid", "total": 1},
                    "changed": ["status", "total"], "previous": {"status": "new", "total": null},
                })
            ),
        ]
    );
    assert_eq!(
        shop.write("update orders set status = status; update orders set total = total + 0 where id = 1")
            .await,
        []
    );
    assert_eq!(
        shop.write("update orders set total = 0 where id = 9; delete from orders where id = 9").await,
        []
    );
    assert_eq!(shop.write("begin; update orders set total = 0; rollback").await, []);
    assert_eq!(
        shop.write("delete from orders where id = 2").await,
        [event("public.orders.delete", "2", json!({"row": {"id": 2, "status": "paid", "total": 1}}))]
    );
    shop.end().await;
}

#[tokio::test]
async fn upsert_merge_and_copy_make_the_events_of_what_they_did() {
    let mut shop = Shop::new(ORDERS).await;
    let paid = |id: u32| json!({"row": {"id": id, "status": "paid", "total": 5}});
    assert_eq!(
        shop.write("insert into orders values (1, 'paid', 5) on conflict (id) do nothing").await,
        [event("public.orders.create", "1", paid(1))]
    );
    assert_eq!(shop.write("insert into orders values (1, 'paid', 6) on conflict (id) do nothing").await, []);
    let upsert = "insert into orders values (1, 'paid', 6), (2, 'paid', 5) \
                  on conflict (id) do update set total = excluded.total";
    let mut upserted = shop.write(upsert).await;
    upserted.sort_by_key(|(topic, _, _)| topic.clone());
    let updated = json!({
        "row": {"id": 1, "status": "paid", "total": 6},
        "changed": ["total"], "previous": {"total": 5},
    });
    assert_eq!(
        upserted,
        [event("public.orders.create", "2", paid(2)), event("public.orders.update", "1", updated)]
    );
    assert_eq!(
        shop.write(
            "insert into orders values (1, 'x', 6) on conflict (id) do update set total = excluded.total"
        )
        .await,
        []
    );

    let mut copy = shop.application.copy_in_raw("copy orders from stdin").await.unwrap();
    copy.send("7\tpaid\t5\n8\tpaid\t5\n".as_bytes()).await.unwrap();
    copy.finish().await.unwrap();
    assert_eq!(
        shop.events().await,
        [event("public.orders.create", "7", paid(7)), event("public.orders.create", "8", paid(8))]
    );

    if shop.database.count("select current_setting('server_version_num')::bigint").await >= 150_000 {
        let merge = "merge into orders using (values (1), (2), (3)) as given (id) on orders.id = given.id
                     when matched and orders.id = 1 then delete
                     when matched then update set status = 'sent'
                     when not matched then insert values (given.id, 'paid', 5)";
        let mut merged = shop.write(merge).await;
        merged.sort_by_key(|(topic, _, _)| topic.clone());
        let sent = json!({
            "row": {"id": 2, "status": "sent", "total": 5},
            "changed": ["status"], "previous": {"status": "paid"},
        });
        let deleted =
            event("public.orders.delete", "1", json!({"row": {"id": 1, "status": "paid", "total": 6}}));
        assert_eq!(
            merged,
            [event("public.orders.create", "3", paid(3)), deleted, event("public.orders.update", "2", sent)]
        );
    }
    shop.end().await;
}

/// Changes that run no triggers are not captured, as docs/capture.md says.
#[tokio::test]
async fn truncate_and_a_session_that_replicates_are_not_captured_unless_triggers_are_always_on() {
    let mut shop = Shop::new(ORDERS).await;
    shop.write("insert into orders values (1, 'new', 1)").await;
    assert_eq!(shop.write("truncate orders").await, []);
    shop.owner(
        "begin; set local session_replication_role = replica; \
         insert into orders values (2, 'new', 1); commit",
    )
    .await;
    assert_eq!(shop.events().await, []);
    shop.owner(
        "alter table orders enable always trigger outbox_capture_insert;
         begin; set local session_replication_role = replica; insert into orders values (3, 'new', 1); commit",
    )
    .await;
    assert_eq!(shop.events().await.len(), 1);
    shop.owner("alter table orders disable trigger outbox_capture_update").await;
    assert_eq!(shop.captured("public.orders").await["problem"], "a trigger is disabled");
    shop.end().await;
}

#[tokio::test]
async fn organization_user_and_source_come_from_session_settings_and_empty_ones_are_null() {
    let mut shop = Shop::new(ORDERS).await;
    let facts = "select jsonb_build_array(organization, user_id, source, headers) \
                 from outbox.events order by position desc limit 1";
    for (settings, expected) in [
        ("", json!([null, null, null, {}])),
        (
            "set outbox.organization = ''; set outbox.user_id = '';
             set outbox.source = ''; set outbox.traceparent = ''",
            json!([null, null, null, {}]),
        ),
        (
            "set outbox.organization = 'acme'; set outbox.user_id = 'u-1'; set outbox.source = 'checkout';
             set outbox.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
             set outbox.tracestate = 'a=b'",
            json!(["acme", "u-1", "checkout", {
                "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                "tracestate": "a=b",
            }]),
        ),
        // Invalid values from a client's request are ignored, and the write succeeds.
        (
            "set outbox.traceparent = E'a\nb'; set outbox.tracestate = 'ü'",
            json!(["acme", "u-1", "checkout", {}]),
        ),
    ] {
        for write in [
            "insert into orders values (1, 'new', 1)",
            "insert into orders values (2, 'new', 1), (3, 'new', 1)",
        ] {
            let sql = AssertSqlSafe(format!("{settings};{write}; delete from orders"));
            shop.application.execute(sqlx::raw_sql(sql)).await.unwrap();
            let seen: Value = sqlx::query_scalar(facts).fetch_one(&shop.database.pool).await.unwrap();
            assert_eq!(seen, expected, "{settings}");
        }
    }
    shop.end().await;
}

#[tokio::test]
async fn what_an_orm_and_a_driver_write_is_captured() {
    let shop = Shop::new(
        "create table customers (id int generated always as identity primary key, name text not null, email text);
         create table orders (id int generated always as identity primary key, customer_id int references customers on delete cascade, total numeric);
         grant all on all sequences in schema public to capture_application;
         select outbox.capture('customers', exclude => '{email}'), outbox.capture('orders', key => 'customer_id')",
    )
    .await;
    let url = shop.database.plain_url().replace("//postgres@", &format!("//{APPLICATION}@"));
    let short = |events: Vec<Event>| -> Vec<String> {
        events
            .iter()
            .map(|(topic, key, payload)| {
                format!("{topic} {} {}", key.as_deref().unwrap_or("-"), payload["changed"])
            })
            .collect()
    };
    let expected = [
        "public.customers.create 1 null",
        "public.orders.create 1 null",
        "public.orders.create 1 null",
        "public.customers.update 1 [\"name\"]",
        "public.orders.update 1 [\"total\"]",
        "public.orders.delete 1 null",
        "public.orders.delete 1 null",
        "public.customers.delete 1 null",
    ];
    for language in ["python", "node"] {
        match language {
            "python" => clients::python("capture_sqlalchemy.py", &[("DATABASE_URL", &url)]).await,
            _ => clients::node("capture_pg.mjs", &[("DATABASE_URL", &url)]).await,
        };
        assert_eq!(short(shop.events().await), expected, "{language}");
        shop.database.execute("truncate customers, orders restart identity").await;
    }
    shop.end().await;
}
