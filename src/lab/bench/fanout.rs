//! Ten subscriptions for each event: the cost of a delivery, compared with that for one subscription.

use super::{
    Row,
    noop_drain::drain,
    report::{Figure, Report},
    running::Permits,
    stage::Stage,
};

const FLOOR: &str = "the same number of deliveries, each of another event, to one subscription";
const SUBSCRIPTIONS: u32 = 10;

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    // The same limit for one subscription as for all: otherwise ten subscriptions would have more permits
    // than one.
    let permits = Permits::wide(2_048);
    let mut figure = Figure::new(
        Row::Fanout,
        format!("{SUBSCRIPTIONS} subscriptions, {}", permits.label()),
        "us/delivery",
        "<= 0.60",
    );
    for _ in 0..stage.sizes.rounds {
        figure.floor.push(cost(stage, permits, SUBSCRIPTIONS * stage.sizes.fanout_events, 1).await?);
        figure.value.push(cost(stage, permits, stage.sizes.fanout_events, SUBSCRIPTIONS).await?);
    }
    Ok(report.print(FLOOR, &[figure])?)
}

/// Microseconds for each delivery.
async fn cost(stage: &Stage, permits: Permits, events: u32, subscriptions: u32) -> anyhow::Result<f64> {
    let database = stage.database().await?;
    for number in 0..subscriptions {
        database.subscribe_noop(&format!("noop-{number}")).await?;
    }
    database.fill(events).await?;
    let deliveries = subscriptions * events;
    let took = drain(&database, permits, deliveries.into()).await?;
    stage.discard(database).await?;
    Ok(took.as_secs_f64() * 1e6 / f64::from(deliveries))
}
