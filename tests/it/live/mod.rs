//! Live clients: everything committed arrives once each, whatever happens to connections and gateways.

mod browser;
mod clients;
mod protocol;
mod resume;
mod storm;
