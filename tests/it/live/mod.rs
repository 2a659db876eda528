//! Live clients: everything committed arrives once each, whatever happens to connections and gateways.

#[cfg(feature = "nats")]
mod backplane;
#[cfg(feature = "nats")]
mod feeder;
mod protocol;
mod resume;
mod storm;
