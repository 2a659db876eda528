//! A handler that removes changed rows from a cache. It needs only the event's key, so it has no payload type.
//!
//! `DATABASE_URL=postgres://… cargo run --example cache_invalidation`, as a member of `outbox_relay`; then
//! `select outbox.publish('public.products.update', '{}', key => '42')`.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example reads its environment and prints"
)]

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
};

use pgoutbox::{CancellationToken, Event, Relay};
use sqlx::PgPool;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cache: Arc<Mutex<HashMap<String, String>>> = Arc::default();
    cache
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert("42".to_owned(), "a stale product".to_owned());
    let pool = PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let shared = cache.clone();
    let forget = move |event: Arc<Event>| {
        let key = event.key.clone().unwrap_or_default();
        let forgotten = shared.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        println!("{key}: {}", if forgotten.is_some() { "forgotten" } else { "was not cached" });
        async { Ok::<(), Infallible>(()) }
    };
    let stop = CancellationToken::new();
    let relay =
        Relay::builder(pool).handler("product-cache", ["public.products.*"], forget).run(stop.clone());
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
