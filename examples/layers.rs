//! Layers around the sinks of a relay: one measures every attempt, one refuses what is too large for
//! webhooks, and one gives up early. The first one is the outermost.
//!
//! `DATABASE_URL=postgres://… cargo run --example layers`, as a member of `outbox_relay`; then
//! `select outbox.publish('shop.orders.create', '{"n": 7}')`.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "an example reads its environment and prints"
)]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use pgoutbox::{
    Egress, Event, Layer, Next, Outcome, Outgoing, Reason, Relay, Report, Secrets, Timeout, Webhook,
    sinks::handler::HandlerError,
};

/// Prints how long each attempt takes.
struct Measure;

impl Layer for Measure {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        let (kind, began) = (next.kind(), Instant::now());
        let reports = next.send(deliveries).await;
        println!("{kind}: {} deliveries took {:?}", deliveries.len(), began.elapsed());
        reports
    }
}

/// Refuses payloads of more bytes: each becomes a dead letter, and the others of its batch are sent.
struct AtMost(usize);

impl Layer for AtMost {
    async fn send(&self, deliveries: &[Outgoing], next: Next<'_>) -> Vec<Report> {
        let refuse = |one: &Outgoing| {
            let refused = Report::from(Outcome::Rejected { reason: Reason::BodyTooLarge });
            (one.event.payload.len() > self.0)
                .then(|| refused.with_answer(format!("more than {} bytes", self.0)))
        };
        next.send_unless(deliveries, refuse).await
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let pool = sqlx::PgPool::connect(&std::env::var("DATABASE_URL")?).await?;
    let print = |event: Arc<Event>| async move {
        println!("{}", event.topic);
        Ok::<(), HandlerError>(())
    };
    let drained = Relay::builder(pool)
        .sink(Webhook::new(&Egress::default(), Secrets::new(None))?)
        .handler("printer", ["shop.**"], print)
        .layer(Measure)
        .layer_on("webhook", AtMost(65_536))
        .layer(Timeout::new(Duration::from_secs(10)))
        .run_until(tokio::signal::ctrl_c())
        .await?;
    println!("drained: {}", drained.complete);
    Ok(())
}
