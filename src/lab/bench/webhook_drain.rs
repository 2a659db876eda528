//! Drains a backlog to one webhook receiver over kept connections.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::task::JoinSet;

use super::{
    Row, per_second, reach,
    receiving::Receiving,
    replay::Replay,
    report::{Figure, Report},
    running::{Permits, Running},
    stage::Stage,
};

const FLOOR: &str = "reqwest posting the bytes of one of the relay's own requests, as many at \
                     once as there are permits, to the same receiver; no database, nothing signed or \
                     recorded";
/// Deadline for 200,000 requests on a slow machine.
pub(super) const LIMIT: Duration = Duration::from_secs(300);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let replay = Replay::capture(stage).await?;
    let mut figures = Vec::new();
    for permits in [Permits::standard(), Permits::wide(256)] {
        let metric = format!("{} events, {}", stage.sizes.webhook_events, permits.label());
        let mut figure = Figure::new(Row::WebhookDrain, metric, "events/s", ">= 0.60");
        for _ in 0..stage.sizes.rounds {
            figure.floor.push(floor(stage, &replay, permits.for_one, &Receiving::counting()?).await?);
            figure.value.push(relay(stage, permits, &Receiving::counting()?).await?);
        }
        figures.push(figure);
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// Starts a relay on a backlog and waits until the receiver has it and all is settled. Returns events per
/// second.
pub(super) async fn relay(stage: &Stage, permits: Permits, receiving: &Receiving) -> anyhow::Result<f64> {
    let database = stage.database().await?;
    let events = u64::from(stage.sizes.webhook_events);
    database.subscribe_webhook(&receiving.url).await?;
    database.fill(stage.sizes.webhook_events).await?;
    let relay = Running::start(&database, permits, stage.webhook()?).await?;
    reach(|| receiving.requests(), events, LIMIT, "draining to webhooks").await?;
    database.settled().await?;
    let took = relay.since.elapsed();
    relay.stop().await?;
    stage.discard(database).await?;
    Ok(per_second(events, took))
}

/// Posts the same number of requests without a relay. Returns requests per second.
pub(super) async fn floor(
    stage: &Stage,
    replay: &Replay,
    at_once: u32,
    receiving: &Receiving,
) -> anyhow::Result<f64> {
    let url: url::Url = receiving.url.parse()?;
    let left = Arc::new(AtomicU32::new(stage.sizes.webhook_events));
    let mut tasks = JoinSet::new();
    let began = Instant::now();
    for _ in 0..at_once {
        let (replay, url, left) = (replay.clone(), url.clone(), left.clone());
        tasks.spawn(async move {
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                replay.post(&url, None).await?;
            }
            anyhow::Ok(())
        });
    }
    tokio::time::timeout(LIMIT, async {
        while let Some(posted) = tasks.join_next().await {
            posted.context("posting")??;
        }
        anyhow::Ok(())
    })
    .await
    .context("posting without a relay did not end in time")??;
    Ok(per_second(stage.sizes.webhook_events.into(), began.elapsed()))
}
