//! Deliveries as a sink gets them, without a relay.

use std::{
    io::Write as _,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use pgoutbox::delivery::SubscriptionId;
use pgoutbox::event::Position;
use pgoutbox::{
    Event,
    cli::config::{Config, Sources},
    delivery::Reason,
    sink::{Connection, Outgoing, Outlet, Registry, Report},
    sinks,
    store::SubscriptionRow,
    subscription::Subscription,
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Deliveries of a subscription, and its outlet.
#[derive(Debug)]
pub(crate) struct Deliveries {
    pub(crate) outlet: Outlet,
    pub(crate) outgoing: Vec<Outgoing>,
}

impl Deref for Deliveries {
    type Target = Vec<Outgoing>;

    fn deref(&self) -> &Vec<Outgoing> {
        &self.outgoing
    }
}

impl<'d> IntoIterator for &'d Deliveries {
    type Item = &'d Outgoing;
    type IntoIter = std::slice::Iter<'d, Outgoing>;

    fn into_iter(self) -> Self::IntoIter {
        self.outgoing.iter()
    }
}

impl DerefMut for Deliveries {
    fn deref_mut(&mut self) -> &mut Vec<Outgoing> {
        &mut self.outgoing
    }
}

/// The connections of a configuration file.
pub(crate) fn connections(file: &str) -> Vec<Connection> {
    let mut kept = tempfile::NamedTempFile::new().unwrap();
    write!(kept, "[database]\nurl = 'postgres://nobody@localhost/nothing'\n{file}").unwrap();
    let sources = Sources { file: Some(kept.path().to_owned()), ..Sources::default() };
    Config::load(&sources, sinks::CONFIGURED).unwrap_or_else(|error| panic!("{error}")).sinks
}

/// The sinks of a configuration file.
pub(crate) fn registry(file: &str) -> Registry {
    let mut registry = sinks::registry();
    registry.open(&connections(file)).unwrap();
    registry
}

/// This many deliveries of one subscription.
pub(crate) fn deliveries(registry: &Registry, sink: &str, config: Value, count: usize) -> Deliveries {
    let payloads: Vec<_> =
        (0..count).map(|n| json!({ "n": n, "note": "secret-in-the-payload" }).to_string()).collect();
    deliveries_of(registry, sink, config, &payloads)
}

/// A payload that jsonb can hold but common JSON types cannot.
pub(crate) fn payload_that_must_not_be_parsed() -> String {
    let depth = 3_000;
    format!(
        r#"{{"huge": 1e400, "digits": 123456789012345678901234567890, "text": "zoë 🦀 \u0007", "deep": {}1{}}}"#,
        "[".repeat(depth),
        "]".repeat(depth)
    )
}

/// Deliveries of one subscription, one for each payload, with keys and an organization.
pub(crate) fn deliveries_of(
    registry: &Registry,
    sink: &str,
    config: Value,
    payloads: &[String],
) -> Deliveries {
    let row =
        SubscriptionRow { id: SubscriptionId(1), ..SubscriptionRow::new("contract", &["**"], sink, config) };
    let (subscription, problem) = Subscription::bind(row, registry);
    assert_eq!(problem, None);
    let now = chrono::DateTime::from(std::time::SystemTime::now());
    let event = |payload: &String, number: i64| Event {
        id: Uuid::now_v7(),
        position: Position(number),
        created_at: now,
        topic: "public.orders.create".to_owned(),
        key: Some(format!("order-{}", number % 10)),
        payload: payload.clone(),
        headers: r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#.to_owned(),
        organization: Some("acme".to_owned()),
        source: Some("shop".to_owned()),
        user_id: None,
        schema_version: Some(1),
    };
    let outgoing = payloads
        .iter()
        .zip(1..)
        .map(|(payload, number)| Outgoing::new(Arc::new(event(payload, number)), "contract".into(), now));
    Deliveries { outlet: subscription.outlet, outgoing: outgoing.collect() }
}

/// Outcome and reason of each report.
pub(crate) fn reasons(reports: &[Report]) -> Vec<(&'static str, Option<Reason>)> {
    reports.iter().map(|report| (report.outcome.code(), report.outcome.reason())).collect()
}
