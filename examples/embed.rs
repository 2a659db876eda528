//! Run a relay in your program, with a custom sink.
//!
//! Subscribe once, as a member of `outbox_admin`:
//!
//! ```sql
//! select outbox.declare_sink('search');
//! select outbox.subscribe('search', array['shop.**'], 'search', '{"index": "orders"}');
//! ```
//!
//! Then, as a member of `outbox_relay`: `DATABASE_URL=postgres://… cargo run --example embed`
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example reads its environment and prints"
)]

use std::time::Duration;

use pgoutbox::{Outcome, Outgoing, Problem, Reason, Relay, Report, Sink};
use serde_json::Value;

/// Puts events into a search index. This example only prints them.
struct Search;

impl Sink for Search {
    const KIND: &'static str = "search";
    type Target = String;

    /// Called when a subscription is loaded. An error becomes its `state_reason`.
    fn target(&self, config: &Value) -> Result<String, Problem> {
        config
            .get("index")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| "config.index: name an index".into())
    }

    /// Targets with the same destination share a breaker. `None`: no breaker.
    fn destination(&self, _index: &String) -> Option<String> {
        Some("search".to_owned())
    }

    /// Makes one attempt. An event may be delivered again, so it is stored under its id.
    async fn send(&self, index: &String, delivery: &Outgoing) -> Report {
        let event = &delivery.event;
        match event.payload::<Value>() {
            Ok(document) => {
                println!("{index}/{} = {document}", event.id);
                Outcome::Delivered.into()
            }
            // Retrying does not help: the event becomes a dead letter at once.
            Err(_) => Outcome::Rejected { reason: Reason::HandlerFailed }.into(),
        }
    }

    fn deadline(&self, _index: &String) -> Duration {
        Duration::from_secs(5)
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let drained = Relay::builder(pool).sink(Search).run_until(tokio::signal::ctrl_c()).await?;
    println!("drained: {}", drained.complete);
    Ok(())
}
