//! pg-boss of npm: its script is node/pg-boss.mjs.

use super::{Plan, Role, Shows, Site, Step, System};

pub(super) const SYSTEM: System = System {
    name: "pg-boss",
    role: Role::Peer,
    version: |files| files.version("pg-boss"),
    configuration: "one process, batchSize 2000, localConcurrency 3, burstWhenBatchFull, posts of a batch in parallel over \
                        64 connections, undici Pool.dispatch",
    lock: "expireInSeconds, 15 min by default",
    plan,
};

fn plan(site: &Site) -> Plan {
    let script = |does| site.files.script("pg-boss", "pg-boss.mjs", site, does);
    Plan {
        prepare: vec![Step::Run(script("fill"))],
        workers: vec![script("run")],
        shows: Some(Shows {
            left: "select count(*) from pgboss.job where state <> 'completed'",
            held: "select count(*) from pgboss.job where state = 'active'",
            // Its supervisor looks once a minute for expired jobs.
            release: Some(
                "update pgboss.job set started_on = started_on - interval '1 hour' where state = 'active'",
            ),
        }),
    }
}
