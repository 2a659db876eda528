//! graphile_worker of crates.io, the Rust port of graphile-worker: its worker is rust_worker.rs.

use super::{Plan, Role, Site, Step, System, graphile_worker::SHOWS, locked, part};

pub(super) const SYSTEM: System = System {
    name: "graphile_worker (Rust)",
    role: Role::Peer,
    version: |_| Ok(format!("{} (reqwest {})", locked("graphile_worker")?, locked("reqwest")?)),
    configuration: "one process, concurrency 64, 2 local queues of 5,000, completion and failure batch delay 100 ms, reqwest",
    lock: "4 hours; opt-in recovery of dead workers after 5 min",
    plan,
};

fn plan(site: &Site) -> Plan {
    let part = |does| part("graphile-worker-rust", site, &[does]);
    Plan { prepare: vec![Step::Run(part("rust-fill"))], workers: vec![part("rust-run")], shows: Some(SHOWS) }
}
