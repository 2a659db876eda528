//! graphile-worker of npm: its script is node/graphile-worker.mjs.

use super::{Plan, Role, Shows, Site, Step, System};

/// The Rust port has the same schema.
pub(super) const SHOWS: Shows = Shows {
    left: "select count(*) from graphile_worker._private_jobs",
    held: "select count(*) from graphile_worker._private_jobs where locked_at is not null",
    release: Some(
        "select graphile_worker.force_unlock_workers(array( \
         select distinct locked_by from graphile_worker._private_jobs where locked_at is not null))",
    ),
};

pub(super) const SYSTEM: System = System {
    name: "graphile-worker",
    role: Role::Peer,
    version: |files| files.version("graphile-worker"),
    configuration: "2 processes, each concurrentJobs 32, localQueue.size 1000, completeJobBatchDelay and failJobBatchDelay 50 ms, \
                        undici Pool.dispatch",
    lock: "4 hours",
    plan,
};

fn plan(site: &Site) -> Plan {
    let script = |does| site.files.script("graphile-worker", "graphile-worker.mjs", site, does);
    Plan {
        prepare: vec![Step::Run(script("fill"))],
        workers: vec![script("run"), script("run")],
        shows: Some(SHOWS),
    }
}
