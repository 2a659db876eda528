//! Drains the first part of a backlog of millions: what waits behind it should cost nothing.

use std::time::Duration;

use super::{
    Row, per_second, reach,
    report::{Figure, Report},
    running::{Noop, Permits, Running},
    stage::{Database, Stage},
};

const FLOOR: &str = "the same, but the backlog has only the events that are delivered";
const LIMIT: Duration = Duration::from_secs(180);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (events, deep) = (stage.sizes.noop_events, stage.sizes.deep_events);
    let metric = format!("the first {events} of {deep} events");
    let mut figure = Figure::new(Row::DeepBacklog, metric, "events/s", ">= 0.90");
    let backlog = stage.database().await?;
    backlog.subscribe_noop("noop").await?;
    backlog.fill(deep).await?;
    for _ in 0..stage.sizes.rounds {
        let shallow = stage.database().await?;
        shallow.subscribe_noop("noop").await?;
        shallow.fill(events).await?;
        figure.floor.push(per_second(events.into(), first(&shallow, events).await?));
        stage.discard(shallow).await?;
        figure.value.push(per_second(events.into(), first(&backlog, events).await?));
    }
    stage.discard(backlog).await?;
    Ok(report.print(FLOOR, &[figure])?)
}

/// Starts a relay and waits until it has sent this many events. The next call goes on behind them.
async fn first(database: &Database, events: u32) -> anyhow::Result<Duration> {
    let noop = Noop::default();
    let relay = Running::start(database, Permits::standard(), noop.clone()).await?;
    reach(|| noop.count(), events.into(), LIMIT, "draining the first part of a backlog").await?;
    let took = relay.since.elapsed();
    relay.stop().await?;
    Ok(took)
}
