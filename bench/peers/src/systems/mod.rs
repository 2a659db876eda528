//! What is measured: each system says how its backlog is made, how it runs, and what its database shows of it.

mod bare_client;
mod graphile_worker;
mod graphile_worker_rust;
mod pg_boss;
mod pgoutbox;

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::process::Program;

/// One of them.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) role: Role,
    /// What was installed.
    pub(crate) version: fn(&Files) -> anyhow::Result<String>,
    /// How it was tuned.
    pub(crate) configuration: &'static str,
    /// How long what a killed one held waits, as documented.
    pub(crate) lock: &'static str,
    pub(crate) plan: fn(&Site) -> Plan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Floor,
    Ours,
    Peer,
}

/// Where it runs.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) files: Files,
    pub(crate) jobs: usize,
    pub(crate) receiver: String,
    pub(crate) database: String,
    /// The same database for a login without rights of its own.
    pub(crate) login_database: String,
    /// A folder that is removed afterwards.
    pub(crate) folder: PathBuf,
}

/// Programs that were installed or built before.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) pgoutbox: PathBuf,
    /// Where npm has installed.
    pub(crate) node: PathBuf,
}

/// The login that [`Site::login_database`] names.
pub(crate) const LOGIN: &str = "peers_relay";

/// How it runs there.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Makes schema and backlog.
    pub(crate) prepare: Vec<Step>,
    pub(crate) workers: Vec<Program>,
    /// What the database shows; nothing for the floor, which has none.
    pub(crate) shows: Option<Shows>,
}

#[derive(Debug)]
pub(crate) enum Step {
    Run(Program),
    Execute(String),
}

/// Queries that answer one number, and a statement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shows {
    /// What is not finished.
    pub(crate) left: &'static str,
    /// What a worker holds.
    pub(crate) held: &'static str,
    /// Ends the locks of a dead worker, as an operator would; nothing where they end soon by themselves.
    pub(crate) release: Option<&'static str>,
}

/// All of them; the floor first.
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

    /// A script of the folder `node`, run there.
    fn script(&self, name: &'static str, script: &str, site: &Site, does: &str) -> Program {
        let mut program = Program::new(name, self.node_program(), &[script, does]);
        program.folder = self.node.clone();
        program.environment = crate::event::environment(&site.database, &site.receiver, site.jobs);
        program
    }

    /// Version of a package of npm's, and of Node.
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

/// This program in one of its parts.
fn part(name: &'static str, site: &Site, arguments: &[&str]) -> Program {
    // The path of this very program: it is running.
    let mut program = Program::new(name, std::env::current_exe().unwrap_or_default(), arguments);
    program.environment = crate::event::environment(&site.database, &site.receiver, site.jobs);
    program.folder.clone_from(&site.folder);
    program
}

/// What crates.io gave, from the lock file this program was built with.
fn locked(package: &str) -> anyhow::Result<String> {
    let lock = include_str!("../../Cargo.lock");
    let at = lock.find(&format!("name = \"{package}\"\nversion = \"")).context("a dependency is locked")?;
    Ok(lock[at..].split('"').nth(3).unwrap_or_default().to_owned())
}
