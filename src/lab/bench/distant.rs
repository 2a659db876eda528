//! Drains a backlog to a webhook receiver that answers after 50 ms: only concurrency makes it fast, and the
//! relay has to find out how much of it the receiver takes.

use std::time::Duration;

use super::{
    Row,
    receiving::Receiving,
    replay::Replay,
    report::{Figure, Report},
    running::Permits,
    stage::Stage,
    webhook_drain::{floor, relay},
};

const FLOOR: &str = "reqwest posting the bytes of one of the relay's own requests to the same \
                     receiver, at once as many as one subscription may have in flight; no database";
const DELAY: Duration = Duration::from_millis(50);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let replay = Replay::capture(stage).await?;
    let permits = Permits::standard();
    let metric = format!("{} events, {}", stage.sizes.webhook_events, permits.label());
    let mut figure = Figure::new(Row::Distant, metric, "events/s", ">= 5,000/s");
    for _ in 0..stage.sizes.rounds {
        figure.floor.push(floor(stage, &replay, permits.for_one, &Receiving::delayed(DELAY)?).await?);
        figure.value.push(relay(stage, permits, &Receiving::delayed(DELAY)?).await?);
    }
    Ok(report.print(FLOOR, &[figure])?)
}
