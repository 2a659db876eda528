//! The sinks, one file or folder each, and the table of those that an operator configures.
//!
//! `CONTRIBUTING.md` says how to add one. A sink uses `sink/` and nothing above it.

#[cfg(feature = "amqp")]
pub mod amqp;
pub mod file;
pub mod function;
pub mod handler;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod live;
#[cfg(feature = "nats")]
pub mod nats;
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
pub mod stdout;
pub mod webhook;

use crate::sink::{Kind, Registry};

/// Sinks that an operator configures in `[sinks.<kind>]`, in the order of the manual.
#[rustfmt::skip] // one line each
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

/// Kinds that need a feature of the build. An error for a missing one names the feature.
pub const OPTIONAL: &[&str] = &["kafka", "nats", "redis", "amqp"];

/// An empty registry that knows all kinds.
#[must_use]
pub fn registry() -> Registry {
    Registry::new(CONFIGURED, OPTIONAL)
}

/// Default for the most connections for SQL functions of the application, opened on demand. A few functions
/// that hang, with four transactions each, leave room for the others.
pub(crate) const FUNCTION_CONNECTIONS: u32 = 32;

/// Adds the sinks that need no configuration: `function`, with these connections, `stdout`, and `live`.
pub fn add_built_in(sinks: &mut Registry, functions: function::Functions) {
    sinks.add(function::Function::new(functions));
    sinks.add(stdout::Stdout::default());
    sinks.add(live::Live);
}
