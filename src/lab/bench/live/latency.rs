//! From commit to receipt by a WebSocket client: the time from sending the publishing statement until the
//! client has the event. It includes the commit, in both arms.

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use uuid::Uuid;

use super::{
    Memory, Serving,
    listener::{Listener, about},
};
use crate::lab::bench::{
    Row,
    latency::percentile,
    reach,
    report::{Figure, Report},
    stage::{SOON, Stage},
    within,
    writers::{Load, PUBLISH, open_loop_then},
};

const FLOOR: &str = "the same commit, after which its process sends the client a message of the same \
                     length from memory, with the same WebSocket library";
const SUBSCRIBE: &str = r#"{"type":"subscribe","id":"bench","topics":["bench.**"]}"#;
/// Load that is sent first and not counted.
const WARM_UP: Load = Load { rate: 40, writers: 1, events: 10 };
const PERCENTILES: [(&str, f64); 2] = [("p50", 0.50), ("p99", 0.99)];

pub(in crate::lab::bench) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let sizes = &stage.sizes;
    let idle = Load { rate: 30, writers: 1, events: sizes.idle_events };
    let busy = Load { rate: 1_000, writers: 8, events: u32::try_from(sizes.busy_for.as_millis())? };
    let names = ["idle", "1,000/s"].into_iter().flat_map(|load| PERCENTILES.map(|(name, _)| (load, name)));
    let mut figures: Vec<Figure> = names
        .map(|(load, name)| Figure::new(Row::LiveLatency, format!("{load}, {name}"), "ms", "<= 2"))
        .collect();
    for _ in 0..sizes.rounds {
        let (value, sample) = gateway(stage, [idle, busy]).await?;
        let floor = memory(stage, [idle, busy], sample).await?;
        for ((figure, floor), value) in figures.iter_mut().zip(floor).zip(value) {
            figure.floor.push(floor);
            figure.value.push(value);
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// The percentiles, and the message of an event.
async fn gateway(stage: &Stage, loads: [Load; 2]) -> anyhow::Result<(Vec<f64>, String)> {
    let database = stage.database().await?;
    let serving = Serving::start(&database).await?;
    let client = Listener::connect(serving.address, Some(SUBSCRIBE), false).await?;
    // It is subscribed, and has caught up.
    client.others(2).await?;
    let percentiles = run(&database.options, &client, loads, |_| {}).await?;
    let sample = client.texts().into_iter().next().context("no event was received")?;
    drop(client);
    serving.stop().await?;
    stage.discard(database).await?;
    Ok((percentiles, sample))
}

async fn memory(stage: &Stage, loads: [Load; 2], sample: String) -> anyhow::Result<Vec<f64>> {
    let (database, serving) = (stage.database().await?, Memory::start().await?);
    let client = Listener::connect(serving.address, None, false).await?;
    let messages = serving.messages.clone();
    let committed = move |event| {
        if let Ok(text) = about(&sample, event) {
            // An error means that the client has left, which is found by its missing events.
            let _ = messages.send(Arc::new(vec![text.into()]));
        }
    };
    let percentiles = run(&database.options, &client, loads, committed).await?;
    drop(client);
    stage.discard(database).await?;
    Ok(percentiles)
}

/// Runs the loads one after the other and returns the percentiles of each.
async fn run(
    options: &sqlx::postgres::PgConnectOptions,
    client: &Listener,
    loads: [Load; 2],
    committed: impl Fn(Uuid) + Clone + Send + 'static,
) -> anyhow::Result<Vec<f64>> {
    let mut percentiles = Vec::new();
    let mut sent_before = 0;
    for (load, counts) in [(WARM_UP, false), (loads[0], true), (loads[1], true)] {
        let publishing = open_loop_then(options, PUBLISH, load, committed.clone());
        let sent = within(SOON * 10, "publishing at a given rate", publishing).await?;
        sent_before += u64::from(load.events);
        reach(|| client.events(), sent_before, SOON, "waiting for the published events").await?;
        if !counts {
            continue;
        }
        let waits = sent.into_iter().map(|(event, since)| {
            let arrival = client.arrival(event).context("an event did not arrive")?;
            Ok(arrival.saturating_duration_since(since))
        });
        let mut waits = waits.collect::<anyhow::Result<Vec<Duration>>>()?;
        waits.sort_unstable();
        percentiles.extend(PERCENTILES.map(|(_, part)| percentile(&waits, part)));
    }
    Ok(percentiles)
}
