//! What only the demo, the benchmark and tests use: private servers, a receiver, and the programs made of them. No relay needs it.

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod demo;
pub mod private_postgres;
pub mod private_server;
#[cfg(feature = "cli")]
pub mod receiver;
pub mod testing;
