//! The destinations, one file or folder each, and the table of those that an operator configures.
//!
//! How to add one stands in `CONTRIBUTING.md`. A sink knows `sink/`, and nothing above it.

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod file;
pub mod function;
pub mod handler;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nats")]
pub mod nats;
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
pub mod stdout;
pub mod webhook;

use sqlx::postgres::PgConnectOptions;

use crate::sink::{Kind, Registry};

/// The sinks that an operator configures below `[sinks.<kind>]`, in the order of the manual.
#[rustfmt::skip] // a line each
pub const CONFIGURED: &[Kind] = &[
    Kind::of::<postgres::Postgres>(),
    #[cfg(feature = "nats")]
    Kind::of::<nats::Nats>(),
    #[cfg(feature = "kafka")]
    Kind::of::<kafka::Kafka>(),
    #[cfg(feature = "redis")]
    Kind::of::<redis::Redis>(),
    #[cfg(feature = "amqp")]
    Kind::of::<amqp::Amqp>(),
    Kind::of::<file::File>(),
];

/// The kinds that a build may lack: a subscription that names one of them is answered with the feature.
pub const OPTIONAL: &[&str] = &["kafka", "nats", "redis", "amqp"];

/// A registry that knows which kinds there are, and has none yet.
#[must_use]
pub fn registry() -> Registry {
    Registry::new(CONFIGURED, OPTIONAL)
}

/// Connections for SQL functions of the application, made when they are needed: so many that a few functions that hang, each
/// with its four transactions, leave room for the others.
const FUNCTION_CONNECTIONS: u32 = 32;

/// Adds the sinks that every relay has: they need nothing but the database it has anyway, and its standard output. Nothing is
/// connected to yet. `relay`: its name in `pg_stat_activity`; `pooler`: through a transaction pooler.
pub fn add_built_in(sinks: &mut Registry, database: PgConnectOptions, relay: &str, pooler: bool) {
    sinks.add(function::Function::new(function::Functions::new(
        database,
        relay,
        pooler,
        FUNCTION_CONNECTIONS,
    )));
    sinks.add(stdout::Stdout::default());
}
