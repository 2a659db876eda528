//! What the tests share: a real PostgreSQL, a database for each test, a relay in a box, a sink that records, receivers that
//! misbehave.

pub(crate) mod database;
pub(crate) mod hostile;
pub(crate) mod recorder;
pub(crate) mod relay;

pub(crate) use database::Database;
pub(crate) use recorder::Recorder;
pub(crate) use relay::RelayBox;
