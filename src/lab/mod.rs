//! Private servers, a receiver, the demo and the benchmark. Only these and tests use this folder; a relay
//! does not.

#[cfg(feature = "cli")]
pub mod bench;
#[cfg(feature = "cli")]
pub mod demo;
pub mod private_postgres;
pub mod private_server;
#[cfg(feature = "cli")]
pub mod receiver;
pub mod testing;
