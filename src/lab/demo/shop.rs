//! A small shop: an application that writes orders and their events in the same transactions.

use anyhow::Context;
use sqlx::PgPool;
use uuid::Uuid;

use super::ledger::{PAID, PLACED, REFUNDED};

/// The shop's own table.
const SCHEMA: &str = "
    create schema shop;
    create table shop.orders (
        id       bigint  generated always as identity primary key,
        customer text    not null,
        cents    integer not null check (cents > 0),
        state    text    not null default 'placed'
    )";

/// Publishes an event in the current transaction and returns its id.
const PUBLISH: &str = "select outbox.publish($1, $2, key => $3)";

const CUSTOMERS: [&str; 5] = ["Ada", "Grace", "Edsger", "Barbara", "Tony"];

/// Result of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Done {
    /// The order and its event were committed.
    Committed { event: Uuid, topic: &'static str, order: i64 },
    /// The order and its event were rolled back.
    RolledBack { event: Uuid, order: i64 },
}

#[derive(Debug)]
pub(super) struct Shop {
    pool: PgPool,
    /// Orders that are placed but not changed yet.
    open: Vec<i64>,
    placed: usize,
}

impl Shop {
    pub(super) async fn open(pool: PgPool) -> anyhow::Result<Self> {
        sqlx::raw_sql(SCHEMA).execute(&pool).await.context("creating the shop's table")?;
        Ok(Self { pool, open: Vec::new(), placed: 0 })
    }

    /// Places an order. Every sixth card is refused, and the transaction rolled back.
    pub(super) async fn place(&mut self) -> anyhow::Result<Done> {
        self.placed += 1;
        let customer = CUSTOMERS[self.placed % CUSTOMERS.len()];
        let cents = i32::try_from(1_000 + self.placed * 137 % 9_000)?;
        let mut transaction = self.pool.begin().await?;
        let order: i64 =
            sqlx::query_scalar("insert into shop.orders (customer, cents) values ($1, $2) returning id")
                .bind(customer)
                .bind(cents)
                .fetch_one(&mut *transaction)
                .await
                .context("inserting an order")?;
        let event = publish(
            &mut transaction,
            PLACED,
            order,
            serde_json::json!({"order": order, "customer": customer, "cents": cents}),
        )
        .await?;
        if self.placed.is_multiple_of(6) {
            transaction.rollback().await.context("rolling back an order")?;
            return Ok(Done::RolledBack { event, order });
        }
        transaction.commit().await.context("committing an order")?;
        self.open.push(order);
        Ok(Done::Committed { event, topic: PLACED, order })
    }

    /// Pays the oldest open order.
    pub(super) async fn pay(&mut self) -> anyhow::Result<Option<Done>> {
        self.change("paid", PAID).await
    }

    /// Refunds the oldest open order.
    pub(super) async fn refund(&mut self) -> anyhow::Result<Option<Done>> {
        self.change("refunded", REFUNDED).await
    }

    async fn change(&mut self, state: &str, topic: &'static str) -> anyhow::Result<Option<Done>> {
        if self.open.is_empty() {
            return Ok(None);
        }
        let order = self.open.remove(0);
        let mut transaction = self.pool.begin().await?;
        sqlx::query("update shop.orders set state = $2 where id = $1")
            .bind(order)
            .bind(state)
            .execute(&mut *transaction)
            .await
            .context("updating an order")?;
        let event =
            publish(&mut transaction, topic, order, serde_json::json!({"order": order, "state": state}))
                .await?;
        transaction.commit().await.context("committing a change of an order")?;
        Ok(Some(Done::Committed { event, topic, order }))
    }
}

async fn publish(
    transaction: &mut sqlx::PgConnection,
    topic: &str,
    order: i64,
    payload: serde_json::Value,
) -> anyhow::Result<Uuid> {
    let publish = sqlx::query_scalar(PUBLISH).bind(topic).bind(payload).bind(format!("order_{order}"));
    publish.fetch_one(transaction).await.context("publishing an event")
}
