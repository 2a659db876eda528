//! Drains a backlog of events with keys to a webhook receiver, in the order of each key.

use super::{
    Row, per_second, reach,
    receiving::Receiving,
    report::{Figure, Report},
    running::{Permits, Running},
    stage::Stage,
    webhook_drain::LIMIT,
};

const FLOOR: &str = "the same backlog without an order: half of the events are for 100 hot keys, half for \
                     100,000 cold ones";

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let metric = format!("{} events, 100 hot and 100,000 cold keys", stage.sizes.webhook_events);
    let mut figure = Figure::new(Row::Ordered, metric, "events/s", ">= 0.70");
    for _ in 0..stage.sizes.rounds {
        figure.floor.push(drain(stage, "none").await?);
        figure.value.push(drain(stage, "key").await?);
    }
    Ok(report.print(FLOOR, &[figure])?)
}

/// Events per second of a relay with default settings.
async fn drain(stage: &Stage, ordering: &str) -> anyhow::Result<f64> {
    let receiving = Receiving::counting()?;
    let database = stage.database().await?;
    let events = stage.sizes.webhook_events;
    database.subscribe_webhook(&receiving.url).await?;
    database.order(ordering).await?;
    database.fill_with_keys(events).await?;
    let relay = Running::start(&database, Permits::standard(), stage.webhook()?).await?;
    reach(|| receiving.requests(), events.into(), LIMIT, "draining in order").await?;
    database.settled().await?;
    let took = relay.since.elapsed();
    relay.stop().await?;
    stage.discard(database).await?;
    Ok(per_second(events.into(), took))
}
