//! From commit to receipt: the time from sending the publishing statement until the receiver has the request.
//! It includes the commit, in both arms. At 1,000 a second writers keep to their schedule (open loop).

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::{sync::Semaphore, task::JoinSet};
use uuid::Uuid;

use super::{
    Row, reach,
    receiving::Receiving,
    replay::Replay,
    report::{Figure, Report},
    running::{Permits, Running},
    stage::{SOON, Stage},
    within,
    writers::{Load, PUBLISH, open_loop},
};

const FLOOR: &str = "insert into a table without triggers and NOTIFY with the id in one commit; a listener \
                     that posts the bytes of one of the relay's requests for each notification, with the \
                     same client to the same receiver";
const CHANNEL: &str = "bench_floor";
const TABLE: &str = "create schema bench; \
                     create table bench.plain (id uuid primary key, topic text not null, \
                     payload jsonb not null)";
const COMMIT_AND_NOTIFY: &str = "with written as (insert into bench.plain (id, topic, payload) \
                                 values ($1, 'bench.orders.created', $2::text::jsonb)) \
                                 select pg_notify('bench_floor', $1::uuid::text)";
/// Load that is sent first and not counted, to open connections and prepare statements.
const WARM_UP: Load = Load { rate: 40, writers: 1, events: 10 };
const PERCENTILES: [(&str, f64, &str, &str); 3] =
    [("p50", 0.50, "<= 2", "<= 2"), ("p95", 0.95, "", ""), ("p99", 0.99, "", "p99 <= 10 ms")];

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let sizes = &stage.sizes;
    let idle = Load { rate: 30, writers: 1, events: sizes.idle_events };
    let busy = Load { rate: 1_000, writers: 8, events: u32::try_from(sizes.busy_for.as_millis())? };
    let replay = Replay::capture(stage).await?;
    let named = |name: &'static str| {
        move |(percentile, _, idle_goal, busy_goal): (&str, f64, &'static str, &'static str)| {
            let goal = if name == "idle" { idle_goal } else { busy_goal };
            Figure::new(Row::Latency, format!("{name}, {percentile}"), "ms", goal)
        }
    };
    let mut figures = PERCENTILES
        .map(named("idle"))
        .into_iter()
        .chain(PERCENTILES.map(named("1,000/s")))
        .collect::<Vec<_>>();
    for _ in 0..sizes.rounds {
        let floor = floor(stage, &replay, [idle, busy]).await?;
        let relay = relay(stage, [idle, busy]).await?;
        for ((figure, floor), value) in figures.iter_mut().zip(floor).zip(relay) {
            figure.floor.push(floor);
            figure.value.push(value);
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

async fn relay(stage: &Stage, loads: [Load; 2]) -> anyhow::Result<Vec<f64>> {
    let (database, receiving) = (stage.database().await?, Receiving::recording()?);
    database.subscribe_webhook(&receiving.url).await?;
    let relay = Running::start(&database, Permits::standard(), stage.webhook()?).await?;
    let percentiles = run(&database.options, PUBLISH, &receiving, loads).await?;
    relay.stop().await?;
    stage.discard(database).await?;
    Ok(percentiles)
}

async fn floor(stage: &Stage, replay: &Replay, loads: [Load; 2]) -> anyhow::Result<Vec<f64>> {
    let (database, receiving) = (stage.database().await?, Receiving::recording()?);
    database.execute(TABLE).await?;
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(database.options.clone());
    let mut listener = PgListener::connect_with(&pool).await?;
    listener.listen(CHANNEL).await?;
    // Aborted when this function returns.
    let mut listening = JoinSet::new();
    let (replay, url) = (replay.clone(), receiving.url.parse()?);
    listening.spawn(async move { post_each(&mut listener, &replay, &url).await });
    let percentiles = tokio::select! {
        percentiles = run(&database.options, COMMIT_AND_NOTIFY, &receiving, loads) => percentiles?,
        ended = listening.join_next() => anyhow::bail!("the listener of the floor ended: {ended:?}"),
    };
    listening.shutdown().await;
    stage.discard(database).await?;
    Ok(percentiles)
}

/// Sends a request for each notification, with the concurrency of the relay's permits for one subscription.
async fn post_each(listener: &mut PgListener, replay: &Replay, url: &url::Url) -> anyhow::Result<()> {
    let room = Arc::new(Semaphore::new(usize::try_from(Permits::standard().for_one)?));
    let mut posting = JoinSet::new();
    loop {
        let event: Uuid = listener.recv().await?.payload().parse()?;
        let permit = room.clone().acquire_owned().await?;
        let (replay, url) = (replay.clone(), url.clone());
        posting.spawn(async move {
            let posted = replay.post(&url, Some(event)).await;
            drop(permit);
            posted
        });
        while let Some(posted) = posting.try_join_next() {
            posted??;
        }
    }
}

/// Runs the loads one after the other and returns the percentiles of each.
async fn run(
    options: &sqlx::postgres::PgConnectOptions,
    statement: &'static str,
    receiving: &Receiving,
    loads: [Load; 2],
) -> anyhow::Result<Vec<f64>> {
    let mut percentiles = Vec::new();
    let mut sent_before = 0;
    for (load, counts) in [(WARM_UP, false), (loads[0], true), (loads[1], true)] {
        let sent =
            within(SOON * 10, "publishing at a given rate", open_loop(options, statement, load)).await?;
        sent_before += u64::from(load.events);
        reach(|| receiving.events(), sent_before, SOON, "waiting for the published events").await?;
        if !counts {
            continue;
        }
        let waits = sent.into_iter().map(|(event, since)| {
            receiving
                .arrival(event)
                .map(|arrival| arrival.saturating_duration_since(since))
                .context("an event did not arrive")
        });
        let mut waits = waits.collect::<anyhow::Result<Vec<Duration>>>()?;
        waits.sort_unstable();
        percentiles.extend(PERCENTILES.map(|(_, part, ..)| percentile(&waits, part)));
    }
    Ok(percentiles)
}

/// A percentile in milliseconds, by nearest rank.
pub(super) fn percentile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank among some thousand measurements"
    )]
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).map_or(f64::NAN, |wait| wait.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_wait_that_occurred() {
        let waits: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!([0.5, 0.95, 0.99, 1.0].map(|part| percentile(&waits, part)), [50.0, 95.0, 99.0, 100.0]);
        assert_eq!(percentile(&waits[..1], 0.5), 1.0);
    }
}
