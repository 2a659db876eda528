//! What a delivered event costs: CPU of the relay and of PostgreSQL, write-ahead log and dead tuples. The
//! sink does nothing, so that everything that is measured is the relay's.

use std::fs;

use anyhow::Context;
use sqlx::Row as _;

use super::{
    Row,
    noop_drain::{FLOOR, alone, drain},
    report::{Figure, Report},
    running::Permits,
    stage::{Database, Stage},
};

/// Clock ticks in a second, as Linux shows them to programs.
const TICKS: f64 = 100.0;

/// Counters at one time.
#[derive(Debug, Clone, Copy)]
struct Counters {
    relay: f64,
    postgres: f64,
    wal: f64,
    dead: f64,
}

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let events = stage.sizes.noop_events;
    let figure =
        |metric: &str, unit, goal| Figure::new(Row::Cost, format!("{events} events, {metric}"), unit, goal);
    let mut figures = [
        figure("CPU of the process of the relay", "us", ""),
        figure("CPU of PostgreSQL", "us", "<= 3"),
        figure("write-ahead log", "bytes", "<= 40"),
        figure("dead tuples", "tuples", "<= 0.01"),
    ];
    for _ in 0..stage.sizes.rounds {
        for (is_relay, values) in [(false, of(stage, false).await?), (true, of(stage, true).await?)] {
            for (figure, value) in figures.iter_mut().zip(values) {
                let series = if is_relay { &mut figure.value } else { &mut figure.floor };
                series.push(value);
            }
        }
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// What an event costs a relay, or PostgreSQL alone.
async fn of(stage: &Stage, is_relay: bool) -> anyhow::Result<[f64; 4]> {
    let events = stage.sizes.noop_events;
    let database = stage.database().await?;
    database.subscribe_noop("noop").await?;
    database.fill(events).await?;
    let before = counters(stage, &database).await?;
    // Backends report what they did when they end, so the relay is stopped first.
    if is_relay {
        drain(&database, Permits::standard(), events.into()).await?;
    } else {
        alone(&database, events).await?;
    }
    let after = counters(stage, &database).await?;
    stage.discard(database).await?;
    let each = |before: f64, after: f64| (after - before) / f64::from(events);
    Ok([
        each(before.relay, after.relay) * 1e6,
        each(before.postgres, after.postgres) * 1e6,
        each(before.wal, after.wal),
        each(before.dead, after.dead),
    ])
}

async fn counters(stage: &Stage, database: &Database) -> anyhow::Result<Counters> {
    let row = sqlx::query(
        "select (pg_current_wal_insert_lsn() - '0/0')::double precision as wal, \
                (select coalesce(sum(n_tup_upd + n_tup_del), 0)::double precision \
                   from pg_stat_user_tables where schemaname = 'outbox') as dead, \
                pg_stat_clear_snapshot()",
    )
    .fetch_one(&database.pool)
    .await
    .context("reading counters of PostgreSQL")?;
    Ok(Counters {
        relay: cpu_of(&fs::read_to_string("/proc/self/stat").context("reading /proc/self/stat")?),
        postgres: children_of(stage.postmaster()),
        wal: row.try_get("wal")?,
        dead: row.try_get("dead")?,
    })
}

/// CPU time of a process (seconds), from the text of its `stat`.
pub(super) fn cpu_of(stat: &str) -> f64 {
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    (ticks(11) + ticks(12)) / TICKS
}

/// CPU time of the running children of PostgreSQL and of those that ended (seconds).
pub(super) fn children_of(postmaster: u32) -> f64 {
    let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = |stat: &str| -> Vec<String> {
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let ended = fields(&stat(postmaster));
    let ended: f64 =
        ended.iter().skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS;
    let pids = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let running = pids
        .map(stat)
        .filter(|stat| fields(stat).get(1).is_some_and(|parent| *parent == postmaster.to_string()))
        .map(|stat| cpu_of(&stat));
    ended + running.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_process_is_read_whatever_its_name_is() {
        let stat = "7 (a (b) c) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0";
        assert!((cpu_of(stat) - 2.0).abs() < 1e-9);
    }
}
