//! What the partitions of the log cost: an empty look for new events, a drain, and an insert, with twelve and
//! twenty-four partitions that are full, and an insert while some are made and dropped.

use std::time::{Duration, Instant};

use sqlx::Connection as _;

use super::{
    Row,
    noop_drain::{connect, drain},
    per_second,
    report::{Figure, Report},
    running::Permits,
    stage::{Database, SOON, Stage, execute},
    within,
};

const FLOOR: &str = "the same with one partition";
const BESIDE: &str = "an insert, p99, while twice a second a partition is made or dropped";
const BESIDE_FLOOR: &str = "the same 12 partitions, and none is made or dropped";
/// A relay keeps about twelve partitions of a log.
const PARTITIONS: [u32; 2] = [12, 24];
/// Events in each of those that are past.
const PAST: u32 = 10_000;
/// Time between two steps of retention. In production there is one in three days.
const STEP_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let events = stage.sizes.noop_events;
    let times = stage.sizes.partition_looks;
    let mut figures: Vec<Figure> = PARTITIONS
        .iter()
        .flat_map(|count| {
            [
                Figure::new(Row::Partitions, format!("an empty look, {count} partitions"), "µs", "<= 1.20"),
                Figure::new(Row::Partitions, format!("an insert, p99, {count} partitions"), "µs", "<= 1.20"),
                Figure::new(
                    Row::Partitions,
                    format!("a drain of {events} events, {count} partitions"),
                    "events/s",
                    ">= 0.90",
                ),
            ]
        })
        .collect();
    let mut beside = Figure::new(Row::Partitions, BESIDE.to_owned(), "µs", "<= 1.20");
    for _ in 0..stage.sizes.rounds {
        let (value, floor) = beside_steps(stage, times).await?;
        beside.value.push(value);
        beside.floor.push(floor);
        let floor = one(stage, 1, times, events).await?;
        for (count, figures) in PARTITIONS.into_iter().zip(figures.chunks_mut(floor.len())) {
            let value = one(stage, count, times, events).await?;
            for ((figure, value), floor) in figures.iter_mut().zip(value).zip(floor) {
                figure.value.push(value);
                figure.floor.push(floor);
            }
        }
    }
    report.print(FLOOR, &figures)?;
    Ok(report.print(BESIDE_FLOOR, &[beside])?)
}

/// The time of an empty look and the 99th percentile of inserts, in µs, and the events that a relay drains
/// in a second.
async fn one(stage: &Stage, partitions: u32, times: u32, events: u32) -> anyhow::Result<[f64; 3]> {
    let database = stage.database().await?;
    database.subscribe_noop("noop").await?;
    past(&database, partitions).await?;
    database.fill(events).await?;
    let took = drain(&database, Permits::standard(), events.into()).await?;
    let (look, insert) = (look(&database, times).await?, insert(&database, times).await?);
    stage.discard(database).await?;
    Ok([look, insert, per_second(events.into(), took)])
}

/// Partitions of past days, which are full of routed events, beside the default one, which gets all new ones.
async fn past(database: &Database, partitions: u32) -> anyhow::Result<()> {
    for day in 1..partitions {
        let borders = format!(
            "do $$ begin execute format('create table outbox.events_bench_{day} partition of outbox.events for \
             values from (%L) to (%L)', current_date - {day}, current_date - {day} + 1); end $$"
        );
        execute(&database.pool, borders).await?;
        let fill = format!(
            "insert into outbox.events (topic, payload, created_at) \
             select 'bench.past', jsonb_build_object('n', n), current_date - {day} + interval '1 hour' \
               from generate_series(1, {PAST}) as n"
        );
        execute(&database.pool, fill).await?;
    }
    let routed = "update outbox.cursor set step = step + 1, settled = pg_current_snapshot()";
    execute(&database.pool, routed.to_owned()).await?;
    execute(&database.pool, "vacuum analyze outbox.events".to_owned()).await
}

/// 99th percentile of inserts while retention takes steps, and without, in µs.
async fn beside_steps(stage: &Stage, times: u32) -> anyhow::Result<(f64, f64)> {
    let database = stage.database().await?;
    past(&database, 12).await?;
    let without = insert(&database, times * 3).await?;
    let steps = async {
        let mut again = tokio::time::interval(STEP_EVERY);
        for day in 0.. {
            let at = format!("now() + {day} * interval '1 day'");
            for step in
                ["make_partition_at('events', '10 days',", "drop_partition_at('events', '10 days', 'keep',"]
            {
                execute(&database.pool, format!("select outbox_internal.{step} {at})")).await?;
                again.tick().await;
            }
        }
        Ok(f64::NAN)
    };
    let with = tokio::select! {
        with = insert(&database, times * 3) => with?,
        ended = steps => return ended.map(|never| (never, without)),
    };
    stage.discard(database).await?;
    Ok((with, without))
}

/// Median time of the relay's statement that finds nothing new, in µs.
async fn look(database: &Database, times: u32) -> anyhow::Result<f64> {
    let mut connection = connect(database).await?;
    let newest: String = sqlx::query_scalar("select pg_snapshot_xmax(pg_current_snapshot())::text")
        .fetch_one(&mut connection)
        .await?;
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let look = sqlx::query(sql!("relay/read_events"))
            .bind(&newest)
            .bind(Vec::<String>::new())
            .bind(1_000_i64)
            .bind(true)
            .bind(0_i64)
            .fetch_all(&mut connection);
        within(SOON, "looking for new events", look).await?;
        took.push(began.elapsed());
    }
    connection.close().await?;
    Ok(part_of(took, 0.5))
}

/// 99th percentile of the time of an insert, in µs.
async fn insert(database: &Database, times: u32) -> anyhow::Result<f64> {
    let mut connection = database.pool.acquire().await?;
    let mut took = Vec::new();
    for _ in 0..times {
        let began = Instant::now();
        let insert = sqlx::query("insert into outbox.events (topic, payload) values ('bench.part', '{}')")
            .execute(&mut *connection);
        within(SOON, "inserting an event", insert).await?;
        took.push(began.elapsed());
    }
    Ok(part_of(took, 0.99))
}

/// The time in µs that this part of them does not exceed.
fn part_of(mut took: Vec<Duration>, part: f64) -> f64 {
    took.sort_unstable();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "few"
    )]
    let at = (took.len().saturating_sub(1) as f64 * part) as usize;
    took.get(at).map_or(f64::NAN, |took| took.as_secs_f64() * 1e6)
}
