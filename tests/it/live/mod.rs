//! Live clients: everything committed arrives once each, whatever happens to connections and gateways.

#[cfg(feature = "nats")]
mod backplane;
mod browser;
mod clients;
mod connections;
#[cfg(feature = "nats")]
mod feeder;
mod load;
mod metrics;
mod protocol;
mod resume;
mod storm;
mod who;
