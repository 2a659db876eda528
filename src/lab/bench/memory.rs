//! The most memory that a relay takes in a process of its own, with thousands of subscriptions and a backlog.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use sqlx::ConnectOptions as _;

use super::{
    Row,
    report::{Figure, Report},
    stage::{Database, Stage},
};

const FLOOR: &str = "the same backlog and one subscription";
const LIMIT: Duration = Duration::from_secs(600);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (subscriptions, events) = (stage.sizes.match_among, stage.sizes.remembered_events);
    let metric = format!("{subscriptions} subscriptions, a backlog of {events}, the most it took");
    let mut figure = Figure::new(Row::Memory, metric, "MiB", "<= 128 MiB");
    figure.floor.push(most(stage, 0, events).await?);
    figure.value.push(most(stage, subscriptions, events).await?);
    Ok(report.print(FLOOR, &[figure])?)
}

/// MiB of memory at most, until a relay has written the backlog to a file.
async fn most(stage: &Stage, subscriptions: usize, events: u32) -> anyhow::Result<f64> {
    let database = stage.database().await?;
    // Half of them have a filter; none wants these events.
    sqlx::query(
        "insert into outbox.subscriptions (name, topics, sink, config, filter) \
         select 's' || n, array['topic.' || n || '.*'], 'webhook', \
                jsonb_build_object('url', 'https://example.com/' || n), \
                case when n % 2 = 0 then 'payload.total > 100' end \
           from generate_series(1, $1) as n",
    )
    .bind(i64::try_from(subscriptions)?)
    .execute(&database.pool)
    .await?;
    database.subscribe("file", "file", r#"{"path": "events.jsonl"}"#.to_owned()).await?;
    database.fill(events).await?;
    let folder = stage.folder()?;
    let mut relay = Killed(
        Command::new(std::env::current_exe()?)
            .arg("run")
            .env("DATABASE_URL", database.relay_options.to_url_lossy().to_string())
            .env("PGOUTBOX__HTTP__LISTEN", "off")
            .env("PGOUTBOX__SINKS__FILE__FOLDER", &folder)
            .current_dir(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting a relay")?,
    );
    written(&database).await?;
    let most = high_water(relay.0.id())?;
    relay.0.kill().and_then(|()| relay.0.wait()).context("ending the relay")?;
    stage.discard(database).await?;
    Ok(most)
}

/// A process that is killed when this is dropped.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Waits until nothing is owed.
async fn written(database: &Database) -> anyhow::Result<()> {
    let mut polls = tokio::time::interval(Duration::from_millis(200));
    let waiting = async {
        loop {
            polls.tick().await;
            let done: bool = sqlx::query_scalar(
                "select (select unrouted = 0 from outbox.log_status) \
                    and not exists (select from outbox.backlog) \
                    and not exists (select from outbox.pages) \
                    and not exists (select from outbox.deliveries)",
            )
            .fetch_one(&database.pool)
            .await?;
            if done {
                return anyhow::Ok(());
            }
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.context("writing a backlog to a file")?
}

/// The most resident memory of a process so far, in MiB.
fn high_water(process: u32) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).context("the relay has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1_024.0)
}
