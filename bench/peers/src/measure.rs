//! Rounds in which the systems take turns, then kills of each system. Every measurement has its own database
//! and receiver.

use std::{
    path::absolute,
    time::{Duration, Instant},
};

use anyhow::Context;
use rustix::process::Signal;

use crate::{
    figures::{Drain, Kill, Options},
    machine,
    postgres::Postgres,
    process::{Process, Program},
    receiver::Receiver,
    report::{Report, Result},
    systems::{self, Files, LOGIN, Plan, Role, Shows, Site, Step, System},
};

/// Deadline of making a schema and a backlog.
const PREPARE: Duration = Duration::from_secs(300);
/// Time after which a worker that does not stop is killed.
const STOP: Duration = Duration::from_secs(30);
/// Time without a request after which everything was sent that no lock holds back.
const QUIET: Duration = Duration::from_secs(6);

pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    if cfg!(debug_assertions) {
        say("this is a debug build: its figures mean nothing; use make bench-peers");
    }
    let target = crate::project().canonicalize()?.join("target");
    let files = Files {
        pgoutbox: absolute(options.pgoutbox.clone().unwrap_or_else(|| target.join("release/pgoutbox")))?,
        node: absolute(options.node.clone().unwrap_or_else(|| target.join("peers/node")))?,
    };
    let wanted = |system: &System| {
        system.role == Role::Floor
            || options.only.is_empty()
            || options.only.iter().any(|part| system.name.contains(part.as_str()))
    };
    let systems: Vec<System> = systems::all().into_iter().filter(wanted).collect();
    let mut results = Vec::new();
    for system in &systems {
        results.push(Result::new(system, (system.version)(&files)?));
    }
    say("starting a private PostgreSQL in a temporary directory, fsync on");
    let postgres = Postgres::start().await?;
    let stage = Stage { postgres, files, options };
    let machine = machine::describe(&stage.postgres, options).await?;
    for round in 0..options.rounds as usize {
        // Each round begins with another system.
        for turn in 0..systems.len() {
            let at = (round + turn) % systems.len();
            say(&format!("round {} of {}: {}", round + 1, options.rounds, systems[at].name));
            let drained = stage.drain(&systems[at]).await;
            results[at].drained(drained);
        }
    }
    for kill in 1..=options.kills {
        for (system, result) in
            systems.iter().zip(&mut results).filter(|(system, _)| system.role != Role::Floor)
        {
            say(&format!("kill {kill} of {}: {}", options.kills, system.name));
            result.killed(stage.kill(system, moment(options.jobs, kill)).await);
        }
    }
    drop(stage);
    Report { json: options.json, machine, results }.print()
}

struct Stage<'a> {
    postgres: Postgres,
    files: Files,
    options: &'a Options,
}

/// A database with a backlog, and a receiver.
struct Backlog {
    database: Option<String>,
    receiver: Receiver,
    plan: Plan,
}

impl Stage<'_> {
    fn limit(&self) -> Duration {
        Duration::from_secs(self.options.limit)
    }

    async fn drain(&self, system: &System) -> anyhow::Result<Drain> {
        let backlog = self.prepare(system).await?;
        let tally = backlog.receiver.tally();
        let (began, postgres_before) = (Instant::now(), self.postgres.cpu());
        let mut workers = self.start(&backlog.plan.workers)?;
        self.arrived(&backlog, &mut workers).await?;
        let (first, last) = tally.span();
        self.finished(&backlog).await?;
        let settled = last.elapsed();
        let worker_cpu = workers.iter().map(Process::cpu).sum();
        let postgres_cpu = self.postgres.cpu().saturating_sub(postgres_before);
        stop(workers).await?;
        anyhow::ensure!(tally.strange() == 0, "{} requests were no event of the backlog", tally.strange());
        let drain = Drain {
            rate: f64::from(self.options.jobs) / (last - first).as_secs_f64(),
            start: first - began,
            settled,
            repeated: tally.repeated(),
            body: tally.body(),
            worker_cpu,
            postgres_cpu,
        };
        self.discard(backlog).await?;
        Ok(drain)
    }

    /// Kills it once this many events were received.
    async fn kill(&self, system: &System, moment: usize) -> anyhow::Result<Kill> {
        let backlog = self.prepare(system).await?;
        let (tally, jobs) = (backlog.receiver.tally(), self.options.jobs as usize);
        let shows = backlog.plan.shows.context("only what has a database is killed")?;
        let mut workers = self.start(&backlog.plan.workers)?;
        self.until(&mut workers, "the moment of the kill", || tally.distinct() >= moment).await?;
        workers.iter_mut().for_each(Process::kill);
        let killed = Instant::now();
        let held = self.postgres.number(&backlog.name()?, shows.held).await?;
        let at = tally.distinct();

        let mut workers = self.start(&backlog.plan.workers)?;
        let (mut late, mut whole) = (0, None);
        match shows.release {
            None => {
                self.arrived(&backlog, &mut workers).await?;
                whole = Some(tally.span().1 - killed);
            }
            Some(release) => {
                self.quiet(&backlog, &mut workers).await?;
                late = jobs - tally.distinct();
                self.postgres.execute(&backlog.name()?, release).await?;
                self.arrived(&backlog, &mut workers).await?;
            }
        }
        self.finished(&backlog).await?;
        stop(workers).await?;
        let kill = Kill { at, held, repeated: tally.repeated(), late, whole };
        self.discard(backlog).await?;
        Ok(kill)
    }

    /// A fresh database, its schema and backlog, written out and known to the planner.
    async fn prepare(&self, system: &System) -> anyhow::Result<Backlog> {
        let receiver = Receiver::start(self.options.jobs as usize)?;
        let name = "peers";
        let site = Site {
            files: self.files.clone(),
            jobs: self.options.jobs as usize,
            receiver: receiver.url(),
            database: self.postgres.url(name),
            login_database: self.postgres.url_as(LOGIN, name),
            folder: self.postgres.folder().to_owned(),
        };
        let plan = (system.plan)(&site);
        let mut backlog = Backlog { database: None, receiver, plan };
        if backlog.plan.shows.is_none() {
            return Ok(backlog);
        }
        // A failed measurement may have left one.
        self.postgres.execute("postgres", &format!("drop database if exists {name} with (force)")).await?;
        self.postgres.execute("postgres", &format!("create database {name}")).await?;
        backlog.database = Some(name.to_owned());
        for step in &backlog.plan.prepare {
            match step {
                Step::Run(program) => program.run(self.postgres.folder(), PREPARE).await?,
                Step::Execute(statement) => self.postgres.execute(name, statement).await?,
            }
        }
        self.postgres.execute(name, "vacuum (analyze)").await?;
        self.postgres.execute(name, "checkpoint").await?;
        Ok(backlog)
    }

    async fn discard(&self, backlog: Backlog) -> anyhow::Result<()> {
        match &backlog.database {
            // Dropping checkpoints, which keeps what was written so far out of the next measurement.
            Some(name) => {
                self.postgres.execute("postgres", &format!("drop database {name} with (force)")).await
            }
            None => Ok(()),
        }
    }

    fn start(&self, workers: &[Program]) -> anyhow::Result<Vec<Process>> {
        workers.iter().map(|worker| worker.start(self.postgres.folder())).collect()
    }

    /// Waits until every event was received.
    async fn arrived(&self, backlog: &Backlog, workers: &mut [Process]) -> anyhow::Result<()> {
        let (tally, jobs) = (backlog.receiver.tally(), self.options.jobs as usize);
        self.until(workers, "the whole backlog", || tally.distinct() >= jobs).await
    }

    /// Waits until no more requests are received, even if every event was: a running worker may still hold
    /// what it has sent, and ending its locks would cause repetitions that are not due to the kill.
    async fn quiet(&self, backlog: &Backlog, workers: &mut [Process]) -> anyhow::Result<()> {
        let tally = backlog.receiver.tally();
        let (mut requests, mut since) = (0, Instant::now());
        self.until(workers, "an end of the requests", || {
            let now = tally.distinct() + tally.repeated();
            if now != requests {
                (requests, since) = (now, Instant::now());
            }
            since.elapsed() >= QUIET
        })
        .await
    }

    /// Polls a condition every millisecond. Fails if a worker ends before.
    async fn until(
        &self,
        workers: &mut [Process],
        what: &str,
        mut reached: impl FnMut() -> bool,
    ) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(Duration::from_millis(1));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let deadline = Instant::now() + self.limit();
        let mut look: u64 = 0;
        loop {
            if reached() {
                return Ok(());
            }
            look += 1;
            if look.is_multiple_of(100) {
                for worker in workers.iter_mut() {
                    if !worker.runs() && !reached() {
                        anyhow::bail!("waiting for {what}: a worker ended: {}", worker.end_of_log());
                    }
                }
            }
            if Instant::now() > deadline {
                let logs: Vec<String> = workers.iter().map(Process::end_of_log).collect();
                anyhow::bail!(
                    "waiting for {what}: not within {} s: {}",
                    self.options.limit,
                    logs.join(" || ")
                );
            }
            looks.tick().await;
        }
    }

    /// Waits until the database shows nothing left.
    async fn finished(&self, backlog: &Backlog) -> anyhow::Result<()> {
        let Some(Shows { left, .. }) = backlog.plan.shows else { return Ok(()) };
        let name = backlog.name()?;
        let wait = tokio::time::timeout(self.limit(), async {
            let mut looks = tokio::time::interval(Duration::from_millis(20));
            looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while self.postgres.number(&name, left).await? > 0 {
                looks.tick().await;
            }
            anyhow::Ok(())
        });
        wait.await.context("everything has come, and the database does not say so in time")?
    }
}

impl Backlog {
    fn name(&self) -> anyhow::Result<String> {
        self.database.clone().context("it has a database")
    }
}

async fn stop(workers: Vec<Process>) -> anyhow::Result<()> {
    for mut worker in workers {
        if worker.runs() {
            worker.signal(Signal::TERM)?;
            // One that does not stop is killed; it was measured already.
            if let Err(error) = worker.ended(STOP).await {
                say(&format!("{error:#}"));
            }
        }
    }
    Ok(())
}

/// Number of events before a kill: 30 to 70 % of the backlog, and no multiple of a batch, at whose end
/// nothing is held.
fn moment(jobs: u32, kill: u32) -> usize {
    const GOLDEN_RATIO: f64 = 1.618_033_988_749_895;
    let part = 0.3 + 0.4 * (f64::from(kill) * GOLDEN_RATIO).fract();
    (f64::from(jobs) * part) as usize
}

/// Prints a message to standard error.
fn say(text: &str) {
    eprintln!("{text}");
}
