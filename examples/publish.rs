//! Publish from Rust, in the transaction that writes the data.
//!
//! `DATABASE_URL=postgres://… cargo run --example publish`
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example reads its environment and prints"
)]

use pgoutbox::Event;
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;

    let mut tx = pool.begin().await?;
    // … your statements, in the same transaction …
    let id = Event::new("shop.orders.create", json!({ "id": 1005, "total": 1250 }))?
        .key("1005")
        .header("content-language", "en")
        .publish(&mut tx)
        .await?;
    tx.commit().await?;

    println!("{id}");
    Ok(())
}
