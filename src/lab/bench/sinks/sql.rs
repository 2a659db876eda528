//! Another PostgreSQL with an inbox, and a SQL function in the outbox's database. Floors are the same
//! statements without a relay.

use std::sync::OnceLock;

use sqlx::{Executor as _, PgPool};

use super::{Database, Destination, TOPIC, attributes, payload};
use crate::{
    lab::private_postgres::{Options, PrivatePostgres},
    sink::Connection,
    sinks::postgres::INBOX,
};

/// The function that both arms call.
const SHOP: &str = "create schema shop; create table shop.seen (id uuid);
                    grant usage on schema shop to public; grant insert on shop.seen to public;
                    create function shop.on_order(event jsonb) returns void language sql as
                    $$ insert into shop.seen values ((event ->> 'id')::uuid) $$;";

async fn server() -> anyhow::Result<(PrivatePostgres, PgPool)> {
    let server = tokio::task::spawn_blocking(|| {
        let server = PrivatePostgres::start(Options { durable: true, ..Options::default() })?;
        server.create_database("inbox")?;
        anyhow::Ok(server)
    })
    .await??;
    let pool = PgPool::connect(&server.url("inbox")).await?;
    Ok((server, pool))
}

/// An event as both arms send it.
pub(super) fn event(number: u32) -> String {
    let [(_, id), _, (_, created_at)] = attributes(number);
    format!(
        "{{\"id\":\"{id}\",\"topic\":\"{TOPIC}\",\"key\":null,\"organization\":null,\"source\":null,\
         \"user_id\":null,\"schema_version\":null,\"created_at\":\"{created_at}\",\"position\":{number},\
         \"headers\":{{}},\"payload\":{}}}",
        payload(number)
    )
}

/// A database with an inbox.
pub(super) struct Inbox(PrivatePostgres, PgPool);

impl Destination for Inbox {
    const KIND: &'static str = "postgres";
    const FLOOR: &'static str = "the same client library: the same insert into an inbox on the same second \
                                 server, as large as the relay's batches, each in a transaction of its \
                                 own, one after the other";
    const CONFIG: &'static str = r#"{"batch": 500}"#;

    async fn start() -> anyhow::Result<Self> {
        let (server, pool) = server().await?;
        pool.execute(INBOX).await?;
        Ok(Self(server, pool))
    }

    fn connection(&self) -> Option<Connection> {
        let config = crate::sinks::postgres::Config::new(self.0.url("inbox").into());
        Some(Connection::new::<crate::sinks::postgres::Postgres>(config, "default"))
    }

    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
        let mut sent = 0;
        while sent < events {
            let some: Vec<String> = (sent..events.min(sent + batch)).map(event).collect();
            sent += u32::try_from(some.len())?;
            let mut transaction = self.1.begin().await?;
            let insert = sqlx::query(include_str!("../../../sinks/postgres/insert.sql"));
            insert.bind(vec!["pgoutbox"; some.len()]).bind(some).execute(&mut *transaction).await?;
            transaction.commit().await?;
        }
        Ok(())
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let count: i64 = sqlx::query_scalar("select count(*) from outbox.inbox").fetch_one(&self.1).await?;
        Ok(count.try_into()?)
    }
}

/// A function: on a separate server for the floor, in the outbox's database for the relay.
pub(super) struct Called(
    PgPool,
    OnceLock<PgPool>,
    #[expect(dead_code, reason = "dropping it stops the server")] PrivatePostgres,
);

impl Destination for Called {
    const KIND: &'static str = "function";
    const FLOOR: &'static str = "the same function called for the same events on a second server, in \
                                 transactions as large as the relay's batches, one after the other";
    const CONFIG: &'static str = r#"{"function": "shop.on_order"}"#;

    async fn start() -> anyhow::Result<Self> {
        let (server, pool) = server().await?;
        pool.execute(SHOP).await?;
        Ok(Self(pool, OnceLock::new(), server))
    }

    async fn prepare(&self, database: &Database) -> anyhow::Result<()> {
        database.pool.execute(SHOP).await?;
        // Set once: each value is used for one arm.
        let _ = self.1.set(database.pool.clone());
        Ok(())
    }

    fn connection(&self) -> Option<Connection> {
        None
    }

    async fn send(&self, events: u32, batch: u32) -> anyhow::Result<()> {
        let mut sent = 0;
        while sent < events {
            let some: Vec<String> = (sent..events.min(sent + batch.min(50))).map(event).collect();
            sent += u32::try_from(some.len())?;
            let call =
                sqlx::query("select shop.on_order(event::jsonb) from unnest($1::text[]) as sent (event)");
            call.bind(some).execute(&self.0).await?;
        }
        Ok(())
    }

    async fn count(&self) -> anyhow::Result<u64> {
        let pool = self.1.get().unwrap_or(&self.0);
        let count: i64 = sqlx::query_scalar("select count(*) from shop.seen").fetch_one(pool).await?;
        Ok(count.try_into()?)
    }
}
