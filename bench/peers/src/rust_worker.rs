//! A worker of graphile_worker, the Rust port of graphile-worker: `fill` adds the backlog, `run` works on it
//! until SIGTERM.

use std::time::Duration;

use anyhow::Context;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions,
};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::{
    event::{Event, setting},
    floor::Poster,
};

/// Jobs added in one call.
const CHUNK: usize = 5_000;

impl TaskHandler for Event {
    const IDENTIFIER: &'static str = "post";

    async fn run(self, context: WorkerContext) -> impl IntoTaskHandlerResult {
        let poster = context.get_ext::<Poster>().ok_or("no client")?;
        let body = serde_json::to_vec(&self).map_err(|error| error.to_string())?;
        poster.post(body).await.map_err(|error| format!("{error:#}"))
    }
}

fn options() -> anyhow::Result<WorkerOptions> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    Ok(WorkerOptions::default()
        .database_url(&setting("DATABASE_URL")?)
        .concurrency(64)
        .local_queue(LocalQueueConfig::default().with_size(5_000).with_queue_count(2))
        .complete_job_batch_delay(Duration::from_millis(100))
        .fail_job_batch_delay(Duration::from_millis(100))
        .add_extension(Poster::new(headers)?)
        .define_job::<Event>())
}

pub(crate) async fn fill() -> anyhow::Result<()> {
    let jobs: usize = setting("JOBS")?.parse()?;
    let worker = options()?.init().await.context("setting up the queue")?;
    let (utils, spec) = (worker.create_utils(), JobSpec::default());
    for first in (1..=jobs).step_by(CHUNK) {
        let some: Vec<_> = (first..=jobs.min(first + CHUNK - 1)).map(|n| (Event::new(n), &spec)).collect();
        utils.add_jobs::<Event>(&some).await.context("adding jobs")?;
    }
    Ok(())
}

pub(crate) async fn run() -> anyhow::Result<()> {
    options()?.init().await.context("setting up the worker")?.run().await.context("working")
}
