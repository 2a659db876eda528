//! The floor: the HTTP client alone.

use super::{Plan, Role, Site, System, locked, part};

pub(super) const SYSTEM: System = System {
    name: "bare client",
    role: Role::Floor,
    version: |_| Ok(format!("reqwest {}", locked("reqwest")?)),
    configuration: "no database; 64 at once, headers of a signed webhook, nothing signed",
    lock: "",
    plan,
};

fn plan(site: &Site) -> Plan {
    Plan { prepare: Vec::new(), workers: vec![part("bare-client", site, &["floor", "64"])], shows: None }
}
