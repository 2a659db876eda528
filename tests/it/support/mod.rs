//! Shared by the tests: a PostgreSQL, a database for each test, a relay, a sink that records, receivers that
//! misbehave, a proxy that fails, random publishers, and the ledger that checks them.

pub(crate) mod books;
pub(crate) mod child;
pub(crate) mod clients;
pub(crate) mod crowd;
pub(crate) mod database;
pub(crate) mod deliveries;
pub(crate) mod good;
pub(crate) mod hostile;
pub(crate) mod ledger;
pub(crate) mod live;
pub(crate) mod plans;
pub(crate) mod proxy;
pub(crate) mod recorder;
pub(crate) mod relay;
#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(dead_code, unused_imports, reason = "a build without brokers starts none")
)]
pub(crate) mod server;
pub(crate) mod tokens;

pub(crate) use books::{Books, Healing, LedgerSink, pause};
pub(crate) use child::{ChildRelay, Server};
pub(crate) use crowd::{Crowd, Habits, seed};
pub(crate) use database::Database;
pub(crate) use good::Good;
pub(crate) use proxy::Proxy;
pub(crate) use recorder::Recorder;
pub(crate) use relay::RelayBox;
