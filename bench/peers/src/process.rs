//! Processes: started so that they end with this one, limited in time, and ended by their id.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

/// How a process is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) folder: PathBuf,
    /// User and group to run as; `None` for those of this process.
    pub(crate) account: Option<(u32, u32)>,
}

/// A process that was started. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Program {
    pub(crate) fn new(name: &'static str, program: impl Into<PathBuf>, arguments: &[&str]) -> Self {
        Self {
            name,
            program: program.into(),
            arguments: arguments.iter().map(Into::into).collect(),
            environment: Vec::new(),
            folder: PathBuf::from("/"),
            account: None,
        }
    }

    /// Starts it. Its output is appended to its log in the folder `logs`.
    pub(crate) fn start(&self, logs: &Path) -> anyhow::Result<Process> {
        let log = logs.join(format!("{}.log", self.name));
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let child =
            self.command(output).spawn().with_context(|| format!("starting {}", self.program.display()))?;
        Ok(Process { name: self.name, child, log })
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, logs: &Path, limit: Duration) -> anyhow::Result<()> {
        let mut process = self.start(logs)?;
        let status = process.ended(limit).await?;
        anyhow::ensure!(status.success(), "{} failed ({status}): {}", self.name, process.end_of_log());
        Ok(())
    }

    fn command(&self, output: File) -> Command {
        let mut command = Command::new("setpriv");
        // The kernel kills it when the thread that started it ends.
        command.args(["--pdeathsig", "KILL"]);
        if let Some((user, group)) = self.account {
            command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
        }
        command
            .arg("--")
            .arg(&self.program)
            .args(&self.arguments)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        // Settings of the calling shell must not affect a measurement.
        for (name, _) in std::env::vars_os().filter(|(name, _)| decides(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // Its own process group: Ctrl-C in a terminal reaches only this program, which ends the process.
        command.process_group(0);
        command.stdout(output.try_clone().map_or_else(|_| Stdio::null(), Stdio::from)).stderr(output);
        command
    }
}

/// Whether an environment variable may affect a measurement.
fn decides(name: &str) -> bool {
    name.starts_with("PG") || name.starts_with("GRAPHILE") || name == "DATABASE_URL" || name == "NODE_OPTIONS"
}

impl Process {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until it ends. Kills it and fails after `limit`.
    pub(crate) async fn ended(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let wait = tokio::time::timeout(limit, async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            loop {
                looks.tick().await;
                if let Some(status) = self.child.try_wait()? {
                    return anyhow::Ok(status);
                }
            }
        });
        if let Ok(status) = wait.await {
            return status;
        }
        self.kill();
        anyhow::bail!("{} did not end within {} s: {}", self.name, limit.as_secs(), self.end_of_log())
    }

    pub(crate) fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let id = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("a process has an id")?;
        kill_process(id, signal).with_context(|| format!("signalling {}", self.name))
    }

    /// Sends SIGKILL and waits until it has ended.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Processor time used so far.
    pub(crate) fn cpu(&self) -> Duration {
        used(self.id()).map_or(Duration::ZERO, |used| used.own)
    }

    /// Processor time used so far by it and its children, including those that have ended.
    pub(crate) fn cpu_of_all(&self) -> Duration {
        let own = used(self.id()).map_or(Duration::ZERO, |used| used.own + used.ended_children);
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let children = ids.filter_map(used).filter(|used| used.parent == self.id());
        own + children.map(|used| used.own).sum::<Duration>()
    }

    /// The last eight lines of its log, joined to one.
    pub(crate) fn end_of_log(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join(" | ")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Used {
    parent: u32,
    own: Duration,
    ended_children: Duration,
}

/// Reads `/proc/PID/stat`: field 4 is the parent, 14 to 17 are times in ticks. Field 2, a name, may contain
/// spaces.
fn used(id: u32) -> Option<Used> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
    let time = |a, b| {
        Some(Duration::from_millis((ticks(a)? + ticks(b)?) * 1_000 / rustix::param::clock_ticks_per_second()))
    };
    Some(Used { parent: u32::try_from(ticks(4)?).ok()?, own: time(14, 15)?, ended_children: time(16, 17)? })
}
