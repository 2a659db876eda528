//! Another transaction stays open, so that vacuum removes nothing, which slows down queues of updated rows.
//! Measured under a steady load, then with a backlog that is committed at once, then with a backlog and a new
//! relay.

use std::time::{Duration, Instant};

use anyhow::Context;
use sqlx::{Connection, PgConnection};

use super::{
    Row,
    noop_drain::drain,
    per_second,
    report::{Figure, Report},
    running::{Noop, Permits, Running},
    stage::{Database, SOON, Stage},
    within,
    writers::{Load, PUBLISH, open_loop},
};

const FLOOR: &str = "the same load and the same drain without the open transaction";
const RATE: u32 = 2_000;
const WRITERS: u32 = 8;
const LIMIT: Duration = Duration::from_secs(180);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let seconds = stage.sizes.held_for.as_secs_f64();
    let figure = |what: &str, unit, goal| {
        Figure::new(Row::HeldTransaction, format!("{seconds} s, {what}"), unit, goal)
    };
    let mut figures = [
        figure("delivered of 2,000/s", "deliveries/s", ">= 0.90"),
        figure("a backlog then", "events/s", ">= 0.90"),
        figure("a new relay's backlog then", "events/s", ">= 0.90"),
        figure("dead tuples at the end", "rows", ""),
    ];
    for _ in 0..stage.sizes.rounds {
        let (floor, held) = (one(stage, false).await?, one(stage, true).await?);
        for ((figure, floor), held) in figures.iter_mut().zip(floor).zip(held) {
            figure.floor.push(floor);
            figure.value.push(held);
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

async fn one(stage: &Stage, hold: bool) -> anyhow::Result<[f64; 4]> {
    let database = stage.database().await?;
    database.subscribe_noop("noop").await?;
    let holder = if hold { Some(open_transaction(&database).await?) } else { None };
    let noop = Noop::default();
    let relay = Running::start(&database, Permits::standard(), noop.clone()).await?;
    let events = u32::try_from(stage.sizes.held_for.as_millis() * u128::from(RATE) / 1_000)?;
    let (began, length) = (Instant::now(), stage.sizes.held_for * 3 + SOON);
    let load = Load { rate: RATE, writers: WRITERS, events };
    within(length, "publishing at a given rate", open_loop(&database.options, PUBLISH, load)).await?;
    // Count now, not when all have arrived: late events count as not delivered.
    let delivered = per_second(noop.count(), began.elapsed());
    super::reach(|| noop.count(), events.into(), SOON, "waiting for the published events").await?;
    database.settled().await?;

    let backlog = stage.sizes.held_backlog;
    let committed = database.fill_at_once(backlog).await?;
    super::reach(|| noop.count(), u64::from(events) + u64::from(backlog), LIMIT, "draining a backlog")
        .await?;
    database.settled().await?;
    let took = committed.elapsed();
    relay.stop().await?;

    database.fill(backlog).await?;
    let took_by_new_relay = drain(&database, Permits::standard(), backlog.into()).await?;
    let dead = dead_tuples(&database).await?;
    if let Some(mut holder) = holder {
        // Proves that the transaction was open all the time.
        within(
            SOON,
            "closing the held transaction",
            sqlx::raw_sql("select pg_current_xact_id(); commit").execute(&mut holder),
        )
        .await?;
        holder.close().await?;
    }
    stage.discard(database).await?;
    Ok([delivered, per_second(backlog.into(), took), per_second(backlog.into(), took_by_new_relay), dead])
}

/// Opens a transaction with an id and a snapshot: it holds back vacuum and is part of every later snapshot.
async fn open_transaction(database: &Database) -> anyhow::Result<PgConnection> {
    let mut holder = within(SOON, "connecting", PgConnection::connect_with(&database.options)).await?;
    let opening = sqlx::raw_sql("begin isolation level repeatable read; select pg_current_xact_id()")
        .execute(&mut holder);
    within(SOON, "opening a transaction", opening).await?;
    Ok(holder)
}

async fn dead_tuples(database: &Database) -> anyhow::Result<f64> {
    // Backends report their counts at the latest when they end, as those of the relay have.
    within(Duration::from_secs(10), "counting dead tuples", async {
        let dead: i64 = sqlx::query_scalar(
            "select coalesce(sum(n_dead_tup), 0)::bigint from pg_stat_user_tables \
             where schemaname = 'outbox'",
        )
        .fetch_one(&database.pool)
        .await?;
        Ok::<_, anyhow::Error>(f64::from(u32::try_from(dead).context("a count")?))
    })
    .await
}
