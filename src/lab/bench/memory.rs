//! The most memory that a relay takes in a process of its own, with thousands of subscriptions and a backlog.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::Context;
use sqlx::ConnectOptions as _;

use super::{
    Row,
    hostile::Hostile,
    report::{Figure, Report},
    stage::{Database, Stage},
};

const FLOOR: &str = "the same backlog and one subscription";
const LIMIT: Duration = Duration::from_secs(600);
/// How long answers without end are endured, if the backlog is not written before.
const HOSTILE_FOR: Duration = Duration::from_secs(120);

pub(super) async fn measure(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let (subscriptions, events) = (stage.sizes.match_among, stage.sizes.remembered_events);
    let metric = format!("{subscriptions} subscriptions, a backlog of {events}, the most it took");
    let mut quiet = Figure::new(Row::Memory, metric, "MiB", "<= 128 MiB");
    let hostile = stage.sizes.hostile;
    let metric = format!("the same, and {hostile} of them get answers without end");
    let mut bad = Figure::new(Row::Memory, metric, "MiB", "<= 128 MiB");
    let floor = most(stage, 0, 0, events).await?;
    quiet.floor.push(floor);
    bad.floor.push(floor);
    quiet.value.push(most(stage, subscriptions, 0, events).await?);
    bad.value.push(most(stage, subscriptions, hostile, events).await?);
    Ok(report.print(FLOOR, &[quiet, bad])?)
}

/// MiB of memory at most, until a relay has written the backlog to a file. `hostile` subscriptions want the
/// same events at receivers whose answers have no end.
async fn most(stage: &Stage, subscriptions: usize, hostile: usize, events: u32) -> anyhow::Result<f64> {
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
    let receivers = Hostile::open().await?;
    for (number, url) in receivers.urls.iter().cycle().take(hostile).enumerate() {
        let config = serde_json::json!({ "url": format!("{url}{number}"), "timeout": "5s" });
        database.subscribe(&format!("hostile-{number}"), "webhook", config.to_string()).await?;
    }
    database.fill(events).await?;
    let folder = stage.folder()?;
    let process = relay(&database, &folder, "off")?;
    if hostile == 0 {
        tokio::time::timeout(LIMIT, written(&database)).await.context("writing a backlog to a file")??;
    } else if let Ok(written) = tokio::time::timeout(HOSTILE_FOR, written(&database)).await {
        written?;
    }
    let most = resident(process.id(), "VmHWM:")?;
    drop(process);
    stage.discard(database).await?;
    Ok(most)
}

/// A relay in a process of its own that may write to files in this folder, and serves HTTP on this address.
pub(super) fn relay(database: &Database, folder: &Path, http: &str) -> anyhow::Result<Killed> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("run")
        .env("DATABASE_URL", database.relay_options.to_url_lossy().to_string())
        .env("PGOUTBOX__HTTP__LISTEN", http)
        .env("PGOUTBOX__REALTIME__MAX_PER_ADDRESS", "1000000")
        .env("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1")
        .env("PGOUTBOX__EGRESS__ALLOW_HTTP", "true")
        .env("PGOUTBOX__SINKS__FILE__FOLDER", folder)
        .current_dir(folder);
    Killed::start(command)
}

/// A process that is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Killed(std::process::Child);

impl Killed {
    /// Starts a relay that prints nothing.
    pub(super) fn start(mut command: Command) -> anyhow::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().context("starting a relay").map(Self)
    }

    /// Number of the process.
    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Waits until nothing is owed to the file.
async fn written(database: &Database) -> anyhow::Result<()> {
    let mut polls = tokio::time::interval(Duration::from_millis(200));
    loop {
        polls.tick().await;
        let done: bool = sqlx::query_scalar(
            "select (select unrouted = 0 from outbox.log_status) \
                    and not exists (select from outbox.backlog where subscription_id = file.id) \
                    and not exists (select from outbox.pages where file.id = any (subscriptions)) \
                    and not exists (select from outbox.deliveries where subscription_id = file.id) \
                   from outbox.subscriptions as file where file.name = 'file'",
        )
        .fetch_one(&database.pool)
        .await?;
        if done {
            return Ok(());
        }
    }
}

/// The resident memory of a process now, in MiB.
pub(super) fn memory_now(process: u32) -> anyhow::Result<f64> {
    resident(process, "VmRSS:")
}

/// A line about the resident memory of a process, in MiB.
fn resident(process: u32, name: &'static str) -> anyhow::Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).context("the relay has ended")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).context(name)?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1_024.0)
}
