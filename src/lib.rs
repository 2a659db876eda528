//! pgoutbox: a transactional outbox for PostgreSQL.
//!
//! An application writes an event in the transaction that writes its data ([`Draft::publish`], or plain SQL). A [`Relay`]
//! delivers it to every subscription that wants it, until each one has it or a dead letter says why not.
//!
//! # Publishing
//!
//! ```no_run
//! # async fn order(pool: sqlx::PgPool) -> anyhow::Result<()> {
//! use pgoutbox::Event;
//!
//! let mut tx = pool.begin().await?;
//! sqlx::query("insert into orders (id, total) values (1001, 4200)").execute(&mut *tx).await?;
//! Event::new("shop.orders.create", serde_json::json!({ "id": 1001, "total": 4200 }))?.key("1001").publish(&mut tx).await?;
//! tx.commit().await?; // now, and only now, it will be sent
//! # Ok(())
//! # }
//! ```
//!
//! # Running a relay
//!
//! The program `pgoutbox run` is one; a program of your own can have one inside it. It works until the token is cancelled,
//! then finishes what is in flight.
//!
//! ```no_run
//! # async fn relay(pool: sqlx::PgPool) -> anyhow::Result<()> {
//! use pgoutbox::{Relay, config::Egress, secret::Secrets, sinks::webhook::Webhook};
//! use tokio_util::sync::CancellationToken;
//!
//! let webhook = Webhook::new(&Egress::default(), Secrets::new(&pgoutbox::config::Secrets::default()))?;
//! let stop = CancellationToken::new(); // cancel a clone of it to stop
//! let drained = Relay::builder(pool).sink(webhook).run(stop).await?;
//! assert!(drained.complete, "{} deliveries were cut off; another relay repeats them", drained.left);
//! # Ok(())
//! # }
//! ```
//!
//! The pool only says where the database is; its login is a member of `outbox_relay`. A sink of your own implements
//! [`sinks::Sink`]: see `examples/embed.rs`.
//!
//! The modules below stand in reading order: what things are, then where they are kept, then what is done with them.

pub mod duration;
pub mod event;
pub mod topic;
pub mod filter;
pub mod retry;
pub mod verdict;
pub mod event_type;
pub mod subscription;
pub mod delivery;
pub mod sinks;
pub mod egress;
pub mod secret;
pub mod config;
pub mod telemetry;
pub mod logging;
pub mod migrate;
pub mod store;
pub mod relay;
pub mod operate;
pub mod http;
pub mod receiver;
#[doc(hidden)]
pub mod private_postgres;
#[doc(hidden)]
pub mod private_server;
pub mod demo;
pub mod bench;

pub use event::{Draft, Event};
pub use relay::Relay;
/// Stops a relay: [`Relay::run`] drains when it is cancelled.
pub use tokio_util::sync::CancellationToken;
