//! Publishers: at a given rate (open loop) or as fast as possible (closed loop).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::{sync::Barrier, task::JoinSet};
use uuid::Uuid;

use super::stage::{SOON, payload};

/// Publishes one event; `$1` is its id, `$2` the payload.
pub(super) const PUBLISH: &str =
    "insert into outbox.events (id, topic, payload) values ($1, 'bench.orders.created', $2::text::jsonb)";

/// A finite load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Load {
    pub(super) rate: u32,
    pub(super) writers: u32,
    pub(super) events: u32,
}

/// Runs the statement at a rate. Returns each event with the time from which its latency counts: when its
/// statement was sent, or when it was scheduled if the writer was late.
pub(super) async fn open_loop(
    options: &PgConnectOptions,
    statement: &'static str,
    load: Load,
) -> anyhow::Result<Vec<(Uuid, Instant)>> {
    open_loop_then(options, statement, load, |_| {}).await
}

/// Like [`open_loop`], and calls a function with each event that is committed.
pub(super) async fn open_loop_then(
    options: &PgConnectOptions,
    statement: &'static str,
    load: Load,
    committed: impl Fn(Uuid) + Clone + Send + 'static,
) -> anyhow::Result<Vec<(Uuid, Instant)>> {
    let period = Duration::from_secs(1) * load.writers / load.rate.max(1);
    let mut tasks = JoinSet::new();
    let begin = tokio::time::Instant::now() + Duration::from_millis(50);
    for writer in 0..load.writers {
        let mut connection = connect(options).await?;
        let events = load.events / load.writers + u32::from(writer < load.events % load.writers);
        let (first, committed) = (begin + period * writer / load.writers, committed.clone());
        tasks.spawn(async move {
            let mut due = tokio::time::interval_at(first, period);
            due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
            let mut sent = Vec::new();
            for number in 0..events {
                let free = tokio::time::Instant::now();
                let planned = due.tick().await;
                // Up to a millisecond is the timer's own delay and does not count.
                let since = if free > planned { planned.into_std() } else { Instant::now() };
                let event = Uuid::now_v7();
                sqlx::query(statement)
                    .bind(event)
                    .bind(payload(number))
                    .execute(&mut connection)
                    .await
                    .context("publishing")?;
                committed(event);
                sent.push((event, since));
            }
            anyhow::Ok(sent)
        });
    }
    let limit = period * (load.events / load.writers + 1) * 3 + SOON;
    let mut all = Vec::new();
    tokio::time::timeout(limit, async {
        while let Some(sent) = tasks.join_next().await {
            all.extend(sent.context("publishing")??);
        }
        anyhow::Ok(())
    })
    .await
    .context("publishing: the load did not end in time")??;
    Ok(all)
}

/// Commits per second of this many writers together.
pub(super) async fn closed_loop(
    options: &PgConnectOptions,
    statement: &'static str,
    writers: u32,
    length: Duration,
) -> anyhow::Result<f64> {
    let barrier = Arc::new(Barrier::new(usize::try_from(writers)?));
    let mut tasks = JoinSet::new();
    for _ in 0..writers {
        let mut connection = connect(options).await?;
        let barrier = barrier.clone();
        tasks.spawn(async move {
            let payload = payload(1_000);
            let mut publish = async || {
                sqlx::query(statement).bind(Uuid::now_v7()).bind(&payload).execute(&mut connection).await
            };
            publish().await.context("publishing")?; // prepares the statement
            barrier.wait().await;
            let (began, mut commits) = (Instant::now(), 0);
            while began.elapsed() < length {
                publish().await.context("publishing")?;
                commits += 1;
            }
            anyhow::Ok(super::per_second(commits, began.elapsed()))
        });
    }
    let mut rate = 0.0;
    tokio::time::timeout(length + SOON, async {
        while let Some(own) = tasks.join_next().await {
            rate += own.context("publishing")??;
        }
        anyhow::Ok(())
    })
    .await
    .context("publishing: the writers did not end in time")??;
    Ok(rate)
}

async fn connect(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    super::within(SOON, "connecting a writer", PgConnection::connect_with(options)).await
}
