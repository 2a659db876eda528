//! pgoutbox with its default settings, and a subscription whose webhook is signed.

use anyhow::Context;
use serde_json::json;

use super::{Files, LOGIN, Plan, Role, Shows, Site, Step, System};
use crate::{
    event::{PADDING, TOPIC},
    process::Program,
};

/// Secret of the signatures.
const SECRET: &str = "whsec_cGVlcnMtcGVlcnMtcGVlcnMtcGVlcnMtcGVlcnM=";

pub(super) const SYSTEM: System = System {
    name: "pgoutbox",
    role: Role::Ours,
    version,
    configuration: "defaults; one process, one subscription, signed webhook",
    lock: "relay.lease, 10 s by default",
    plan,
};

fn version(files: &Files) -> anyhow::Result<String> {
    let version = crate::postgres::output(&files.pgoutbox.to_string_lossy(), &["--version"]);
    Ok(version.context("pgoutbox does not run: cargo build --release")?.replace("pgoutbox ", ""))
}

fn plan(site: &Site) -> Plan {
    let program = |does, database: &String| {
        let mut program = Program::new("pgoutbox", &site.files.pgoutbox, &[does]);
        program.folder.clone_from(&site.folder);
        program.environment = vec![
            ("DATABASE_URL", database.clone()),
            ("PGOUTBOX_SECRET_PEERS", SECRET.to_owned()),
            // The receiver uses plain http on loopback. The port of the probes may be in use.
            ("PGOUTBOX__EGRESS__ALLOW", "127.0.0.1".to_owned()),
            ("PGOUTBOX__EGRESS__ALLOW_HTTP", "true".to_owned()),
            ("PGOUTBOX__HTTP__LISTEN", "off".to_owned()),
        ];
        program
    };
    let target = json!({ "url": site.receiver, "secret": "env:PGOUTBOX_SECRET_PEERS" });
    let login = format!(
        "do $$ begin if to_regrole('{LOGIN}') is null then create role {LOGIN} login in role outbox_relay; end if; end $$"
    );
    let subscribe =
        format!("select outbox.subscribe('peers', array['**'], 'webhook', config => '{target}'::jsonb)");
    let mut prepare =
        vec![Step::Run(program("migrate", &site.database)), Step::Execute(login), Step::Execute(subscribe)];
    for first in (1..=site.jobs).step_by(10_000) {
        let last = site.jobs.min(first + 9_999);
        prepare.push(Step::Execute(format!(
            "insert into outbox.events (topic, payload) \
             select '{TOPIC}', jsonb_build_object('n', n, 'padding', repeat('x', {PADDING})) from generate_series({first}, {last}) as n"
        )));
    }
    Plan {
        prepare,
        workers: vec![program("run", &site.login_database)],
        shows: Some(Shows {
            left: "select coalesce(sum(backlog + dead_letters), 0)::bigint from outbox.subscription_status",
            held: "select coalesce(sum(in_flight), 0)::bigint from outbox.subscription_status",
            release: None,
        }),
    }
}
