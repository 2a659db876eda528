//! A handler that updates a search index. It uses the event only as a hint and reads the current row.
//!
//! Events may arrive twice and late. Reading the current row makes both harmless.
//!
//! `DATABASE_URL=postgres://… cargo run --example search_index`, as a member of `outbox_relay` that may read
//! `public.users`; then `select outbox.publish('public.users.update', '{"id": 7}')`.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example reads its environment and prints"
)]

use std::sync::Arc;

use pgoutbox::{CancellationToken, Event, Relay, sinks::handler::HandlerError};
use serde::Deserialize;
use sqlx::PgPool;

/// Payload of the event: the id of the changed row.
#[derive(Debug, Deserialize)]
struct Changed {
    id: i64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let rows = pool.clone();
    let index = move |_event: Arc<Event>, changed: Changed| {
        let rows = rows.clone();
        async move {
            let name: Option<String> = sqlx::query_scalar("select name from public.users where id = $1")
                .bind(changed.id)
                .fetch_optional(&rows)
                .await?;
            match name {
                Some(name) => println!("index users/{} = {name:?}", changed.id),
                None => println!("delete users/{}", changed.id), // it was deleted in the meantime
            }
            Ok::<(), HandlerError>(())
        }
    };
    let stop = CancellationToken::new();
    let relay =
        Relay::builder(pool).typed_handler("search-indexer", ["public.users.*"], index).run(stop.clone());
    tokio::pin!(relay);
    tokio::select! {
        ended = &mut relay => drop(ended?),
        _ = tokio::signal::ctrl_c() => {
            stop.cancel();
            relay.await?;
        }
    }
    Ok(())
}
