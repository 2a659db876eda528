//! Tests of each sink beyond the contract, against real destinations.

#[cfg(feature = "amqp")]
pub(crate) mod amqp;
#[cfg(feature = "amqp")]
mod amqp_faults;
#[cfg(feature = "amqp")]
mod amqp_tls;
pub(crate) mod file;
mod function;
mod function_sessions;
mod handler;
pub(crate) mod postgres;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "nats")]
mod nats_answers;
#[cfg(feature = "nats")]
mod nats_creds;
#[cfg(feature = "nats")]
mod nats_faults;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
#[cfg(feature = "kafka")]
mod kafka_faults;
#[cfg(feature = "kafka")]
mod kafka_sasl;
#[cfg(feature = "kafka")]
mod kafka_tls;
#[cfg(feature = "redis")]
pub(crate) mod redis;
#[cfg(feature = "redis")]
mod redis_faults;
#[cfg(feature = "redis")]
mod redis_tls;
mod stdout;
#[cfg(feature = "kafka")]
mod tansu;

use pgoutbox::{
    cli::config,
    sink::{Registry, egress::Egress, secret::Secrets},
    sinks::{function::Functions, handler::Handlers, webhook::Webhook},
};

/// Required keys of connections.
const WHERE: &[&str] = &["url = ", "servers = ", "brokers = ", "folder = "];

/// A registry with every kind of sink, with the addresses of the configuration's manual, whose files do not
/// exist.
pub(crate) fn every_sink() -> Registry {
    let shown: String = config::MANUAL
        .lines()
        .skip_while(|line| !line.starts_with("[sinks."))
        .map(|line| {
            line.strip_prefix("# ")
                .filter(|line| WHERE.iter().any(|key| line.starts_with(key)))
                .unwrap_or(line)
        })
        .collect::<Vec<_>>()
        .join("\n");
    let mut registry = crate::support::deliveries::registry(&shown);
    let egress =
        Egress { allow: vec!["127.0.0.1/32".parse().unwrap()], allow_http: true, ..Egress::default() };
    registry.add(Webhook::new(&egress, Secrets::with_environment(None, |_| None)).unwrap());
    let database: pgoutbox::Servers = "postgres://nobody@localhost/nothing".parse().unwrap();
    pgoutbox::sinks::add_built_in(&mut registry, Functions::new(database, "docs", false, 1));
    let mut handlers = Handlers::default();
    handlers.add("product-cache", |_| async { Ok::<(), std::convert::Infallible>(()) });
    registry.add(handlers);
    registry
}
