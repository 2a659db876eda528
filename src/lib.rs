//! pgoutbox: a transactional outbox for PostgreSQL.
//!
//! An application writes an event in the transaction that writes its data ([`Draft::publish`], or plain SQL).
//! A [`Relay`] delivers it to every subscription that wants it, and retries until it is delivered or becomes
//! a dead letter.
//!
//! # Publish
//!
//! ```no_run
//! # async fn order(pool: sqlx::PgPool) -> anyhow::Result<()> {
//! use pgoutbox::Event;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders (id, total) values (1001, 4200)").execute(&mut *tx).await?;
//! let order = serde_json::json!({ "id": 1001, "total": 4200 });
//! Event::new("shop.orders.create", order)?.key("1001").publish(&mut tx).await?;
//! tx.commit().await?; // nothing is sent before the commit
//! # Ok(())
//! # }
//! ```
//!
//! # Run a relay
//!
//! `pgoutbox run` is a relay; your own program can run one too. It works until the token is cancelled, then
//! finishes the deliveries in flight. The relay opens its own connections with the options of the pool; the
//! login must be a member of `outbox_relay`.
//!
//! ```no_run
//! # async fn relay(pool: sqlx::PgPool) -> anyhow::Result<()> {
//! use pgoutbox::{CancellationToken, Egress, Relay, Secrets, Webhook};
//!
//! let webhook = Webhook::new(&Egress::default(), Secrets::new(None))?;
//! let stop = CancellationToken::new(); // cancel a clone of it to stop
//! let drained = Relay::builder(pool).sink(webhook).run(stop).await?;
//! assert!(drained.complete, "{} deliveries were cut off; another relay repeats them", drained.left);
//! # Ok(())
//! # }
//! ```
#![cfg_attr(
    not(feature = "internals"),
    allow(
        dead_code,
        unused_imports,
        unreachable_pub,
        reason = "items that only the command line and the tests use are checked when those are built"
    )
)]

/// The text of a statement: `sql!("relay/read_events")` is `sql/relay/read_events.sql`.
macro_rules! sql {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/sql/", $name, ".sql"))
    };
}

/// A number that identifies something in the database. Written and read as a `bigint`.
macro_rules! id {
    ($(#[$about:meta])* $name:ident) => {
        $(#[$about])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize,
            serde::Deserialize, sqlx::Type,
        )]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub i64);

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$name> for i64 {
            fn from(number: $name) -> Self {
                number.0
            }
        }
    };
}

// Each room may use those above it and none below; `tests/it/rooms.rs` checks this. Rooms are private; the
// feature `internals` makes them public for the tests of this package.
#[cfg(not(feature = "internals"))]
mod event;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod event;
#[cfg(not(feature = "internals"))]
mod delivery;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod delivery;
#[cfg(not(feature = "internals"))]
mod sink;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod sink;
#[cfg(not(feature = "internals"))]
mod sinks;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod sinks;
#[cfg(not(feature = "internals"))]
mod store;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod store;
#[cfg(not(feature = "internals"))]
mod subscription;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod subscription;
#[cfg(not(feature = "internals"))]
mod relay;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod relay;
#[cfg(not(feature = "internals"))]
mod admin;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod admin;
#[cfg(all(not(feature = "internals"), feature = "cli"))]
mod live;
#[cfg(all(feature = "internals", feature = "cli"))]
#[doc(hidden)]
pub mod live;
#[cfg(all(not(feature = "internals"), feature = "cli"))]
mod http;
#[cfg(all(feature = "internals", feature = "cli"))]
#[doc(hidden)]
pub mod http;
#[cfg(all(not(feature = "internals"), any(feature = "cli", feature = "testing")))]
mod lab;
#[cfg(all(feature = "internals", any(feature = "cli", feature = "testing")))]
#[doc(hidden)]
pub mod lab;
#[cfg(all(not(feature = "internals"), feature = "cli"))]
mod cli;
#[cfg(all(feature = "internals", feature = "cli"))]
#[doc(hidden)]
pub mod cli;

#[cfg(feature = "cli")]
#[doc(hidden)]
pub use cli::run as run_command_line;

// Publishing.
pub use event::{Draft, Event, Position};
// Running a relay.
pub use relay::{
    AttemptLog, Builder as RelayBuilder, Drained, Error as RelayError, Health, Laggard, Relay, Retention,
    Settings as RelaySettings,
    telemetry::{Signal, Telemetry},
};
/// Stops a relay: [`Relay::run`] drains when it is cancelled.
pub use tokio_util::sync::CancellationToken;
// Writing your own sink.
pub use delivery::{Outcome, Reason};
pub use sink::{Batch, Outgoing, Problem, Report, Sink, parse_config};
// Wrapping sinks.
pub use sink::{Layer, Next, Timeout};
// Built-in sinks and their configuration.
pub use sink::{Connection, egress::Egress, secret::Secrets, servers::Servers, tls::TlsFiles};
#[cfg(feature = "amqp")]
pub use sinks::amqp::{Amqp, Config as AmqpConfig};
#[cfg(feature = "kafka")]
pub use sinks::kafka::{Config as KafkaConfig, Kafka};
#[cfg(feature = "nats")]
pub use sinks::nats::{Config as NatsConfig, Nats};
#[cfg(feature = "redis")]
pub use sinks::redis::{Config as RedisConfig, Redis};
pub use sinks::{
    file::{Config as FileConfig, File},
    handler::{HandlerError, Rejected},
    postgres::{Config as PostgresConfig, Postgres},
    webhook::{Webhook, WebhookError},
};
// Operating.
pub use admin::{DeadLetter, DeadLetterFilter, Error as AdminError, Operator, SubscriptionSpec};
// Waiting for what was published.
pub use admin::{EventStatus, Said, SaidState, Waited, wait};
#[cfg(any(feature = "cli", feature = "testing"))]
pub use lab::testing;
pub use store::schema::{Error as MigrateError, pending as pending_migrations, run as migrate};
