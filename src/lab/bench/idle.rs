//! What relays cost that have nothing to do: one process that serves several databases in which nothing
//! happens.

use std::{fmt::Write as _, fs, path::Path, process::Command, time::Duration};

use anyhow::Context;
use sqlx::ConnectOptions as _;

use super::{
    Row,
    cost::{children_of, cpu_of},
    memory::Killed,
    report::{Figure, Report},
    stage::{Database, Stage, execute},
};
use crate::lab::private_postgres::LOGS_STATEMENTS;

const FLOOR: &str = "the same databases without a relay";
/// A relay rests when nothing has happened for twice its lease, and has made its first partitions by then.
const SETTLES_IN: Duration = Duration::from_secs(45);

/// Counters of all databases together.
#[derive(Debug, Clone, Copy)]
struct Counters {
    queries: f64,
    relay: f64,
    postgres: f64,
}

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (count, window) = (stage.sizes.idle_databases, stage.sizes.idle_for);
    let figure =
        |metric: &str, unit, goal| Figure::new(Row::Idle, format!("{count} databases, {metric}"), unit, goal);
    let mut figures = [
        figure("queries in each", "queries/s", "< 1/s"),
        figure("CPU of the relay for all", "ms/s", ""),
        figure("CPU of PostgreSQL for all", "ms/s", ""),
    ];
    let mut databases = Vec::new();
    for _ in 0..count {
        let database = stage.database().await?;
        database.subscribe_noop("noop").await?;
        database.pool.close().await;
        databases.push(database);
    }
    // A vacuum costs, and is not the relay's.
    configure(stage, "autovacuum", Some("off")).await?;
    for (name, value) in LOGS_STATEMENTS {
        configure(stage, name, Some(value)).await?;
    }
    for value in over(stage, &databases, None, window).await?.into_iter().zip(&mut figures) {
        value.1.floor.push(value.0);
    }
    let folder = stage.folder()?;
    let relay = relay(&databases, &folder)?;
    // In tests the figures mean nothing.
    let settling = if window > Duration::from_secs(5) { SETTLES_IN } else { window };
    pause(settling).await;
    for value in over(stage, &databases, Some(relay.id()), window).await?.into_iter().zip(&mut figures) {
        value.1.value.push(value.0);
    }
    drop(relay);
    for name in LOGS_STATEMENTS.iter().map(|(name, _)| *name).chain(["autovacuum"]) {
        configure(stage, name, None).await?;
    }
    for database in databases {
        stage.discard(database).await?;
    }
    Ok(report.print(FLOOR, &figures)?)
}

/// Changes a setting of the server, or takes the change back.
async fn configure(stage: &Stage, name: &str, value: Option<&str>) -> anyhow::Result<()> {
    let change = match value {
        Some(value) => format!("alter system set {name} = '{value}'"),
        None => format!("alter system reset {name}"),
    };
    execute(stage.server(), change).await?;
    execute(stage.server(), "select pg_reload_conf()".to_owned()).await
}

/// Queries per second in each database, and CPU in ms per second, over a time.
async fn over(
    stage: &Stage,
    databases: &[Database],
    relay: Option<u32>,
    window: Duration,
) -> anyhow::Result<[f64; 3]> {
    let before = counters(stage, databases, relay)?;
    pause(window).await;
    let after = counters(stage, databases, relay)?;
    let counts = relay.is_none() || after.queries > before.queries;
    anyhow::ensure!(counts, "the log of PostgreSQL has no statement of the relay");
    let seconds = window.as_secs_f64();
    let each = f64::from(u32::try_from(databases.len()).unwrap_or(u32::MAX));
    Ok([
        (after.queries - before.queries) / seconds / each,
        (after.relay - before.relay) / seconds * 1e3,
        (after.postgres - before.postgres) / seconds * 1e3,
    ])
}

fn counters(stage: &Stage, databases: &[Database], relay: Option<u32>) -> anyhow::Result<Counters> {
    let names: Vec<&str> = databases.iter().map(Database::name).collect();
    // Not the counters of transactions: PostgreSQL counts one more for each notification that a session
    // hears.
    let queries = stage.count_statements(&names).into_iter().sum::<usize>();
    let queries = f64::from(u32::try_from(queries).unwrap_or(u32::MAX));
    let relay = match relay {
        Some(relay) => {
            cpu_of(&fs::read_to_string(format!("/proc/{relay}/stat")).context("the relay has ended")?)
        }
        None => 0.0,
    };
    Ok(Counters { queries, relay, postgres: children_of(stage.postmaster()) })
}

/// A relay in a process of its own for all of these databases.
fn relay(databases: &[Database], folder: &Path) -> anyhow::Result<Killed> {
    let mut file = String::from("[http]\nlisten = 'off'\n");
    for database in databases {
        let url = database.relay_options.to_url_lossy();
        write!(file, "[[source]]\nname = '{}'\n[source.database]\nurl = '{url}'\n", database.name())?;
    }
    let path = folder.join("pgoutbox.toml");
    fs::write(&path, file).context("writing a configuration")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("run").arg("--config").arg(path).current_dir(folder).env_remove("DATABASE_URL");
    Killed::start(command)
}

/// Waits while nothing is to happen.
async fn pause(length: Duration) {
    let _ = tokio::time::timeout(length, std::future::pending::<()>()).await;
}
