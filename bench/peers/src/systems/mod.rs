//! The measured systems: how each makes its backlog, how it runs, and how its database shows its progress.

mod bare_client;
mod graphile_worker;
mod graphile_worker_rust;
mod pg_boss;
mod pgoutbox;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::process::Program;

/// A measured system.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// Returns the installed version.
    pub(crate) version: fn(&Files) -> anyhow::Result<String>,
    /// Its settings, for the report.
    pub(crate) configuration: &'static str,
    /// Documented time after which the jobs of a killed worker are released, for the report.
    pub(crate) lock: &'static str,
    pub(crate) plan: fn(&Site) -> Plan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Floor,
    Ours,
    Peer,
}

/// The database, receiver and files of a measurement.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) files: Files,
    pub(crate) jobs: usize,
    pub(crate) receiver: String,
    pub(crate) database: String,
    /// URL of the same database with the login [`LOGIN`].
    pub(crate) login_database: String,
    /// A folder that is removed afterwards.
    pub(crate) folder: PathBuf,
}

/// Paths of installed and built programs.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) pgoutbox: PathBuf,
    /// Folder in which npm has installed.
    pub(crate) node: PathBuf,
}

/// Login of pgoutbox, a member of `outbox_relay` only.
pub(crate) const LOGIN: &str = "peers_relay";

/// How a system runs at a site.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Steps that make the schema and the backlog.
    pub(crate) prepare: Vec<Step>,
    pub(crate) workers: Vec<Program>,
    /// Queries for its progress; `None` for the floor, which has no database.
    pub(crate) shows: Option<Shows>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Run(Program),
    Execute(String),
}

/// Queries for the progress of a system, each with one number as result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shows {
    /// Number of unfinished jobs.
    pub(crate) left: &'static str,
    /// Number of jobs that a worker holds.
    pub(crate) held: &'static str,
    /// Statement that releases the jobs of a dead worker, as an operator would; `None` if they are released
    /// soon.
    pub(crate) release: Option<&'static str>,
}

/// All systems, the floor first.
pub(crate) fn all() -> Vec<System> {
    vec![
        bare_client::SYSTEM,
        pgoutbox::SYSTEM,
        graphile_worker::SYSTEM,
        graphile_worker_rust::SYSTEM,
        pg_boss::SYSTEM,
    ]
}

impl Files {
    /// The Node that npm has installed for this machine.
    fn node_program(&self) -> PathBuf {
        let machine = if cfg!(target_arch = "aarch64") { "arm64" } else { "x64" };
        self.node.join(format!("node_modules/node-linux-{machine}/bin/node"))
    }

    /// Runs a script in the folder `node`.
    fn script(&self, name: &'static str, script: &str, site: &Site, does: &str) -> Program {
        let mut program = Program::new(name, self.node_program(), &[script, does]);
        program.folder = self.node.clone();
        program.environment = crate::event::environment(&site.database, &site.receiver, site.jobs);
        program
    }

    /// Versions of a package of npm, of Node and of undici.
    fn version(&self, package: &str) -> anyhow::Result<String> {
        let read = |name: &str| installed(&self.node.join(format!("node_modules/{name}/package.json")));
        let node = crate::postgres::output(&self.node_program().to_string_lossy(), &["--version"]);
        let node = node.context("Node does not run: make bench-peers installs it")?;
        Ok(format!("{} (Node {}, undici {})", read(package)?, node.trim_start_matches('v'), read("undici")?))
    }
}

fn installed(package: &Path) -> anyhow::Result<String> {
    let text = std::fs::read(package)
        .with_context(|| format!("reading {}: make bench-peers installs it", package.display()))?;
    let version = serde_json::from_slice::<Value>(&text)?["version"].as_str().map(str::to_owned);
    version.context("a package has a version")
}

/// This program, with a subcommand.
fn part(name: &'static str, site: &Site, arguments: &[&str]) -> Program {
    // The path is known because this program runs.
    let mut program = Program::new(name, std::env::current_exe().unwrap_or_default(), arguments);
    program.environment = crate::event::environment(&site.database, &site.receiver, site.jobs);
    program.folder.clone_from(&site.folder);
    program
}

/// Version of a crate, from the lock file with which this program was built.
fn locked(package: &str) -> anyhow::Result<String> {
    let lock = include_str!("../../Cargo.lock");
    let at = lock.find(&format!("name = \"{package}\"\nversion = \"")).context("a dependency is locked")?;
    Ok(lock[at..].split('"').nth(3).unwrap_or_default().to_owned())
}
