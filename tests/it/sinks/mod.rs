//! The real destinations behind the sinks, and what each sink promises beyond the contract.

pub(crate) mod file;
mod function;
mod handler;
pub(crate) mod postgres;
