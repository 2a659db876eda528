//! The gateway that feeds the others dies, hangs, or finds that another has fed.

use serde_json::json;
use tokio::runtime::Runtime;

use super::backplane::{assert_next, follow, publish, start};
use crate::{
    sink_contract::Destination as _,
    sinks::nats::Nats,
    support::{Database, live::LiveBox},
};

/// The session that feeds, or may.
const HOLDER: &str = "select pid from pg_locks where locktype = 'advisory' and objid = 7411004 and granted \
                      and database = (select oid from pg_database where datname = current_database())";

/// Waits until one process feeds, of so many.
async fn until_fed(database: &Database) {
    database.eventually(&format!("select exists ({HOLDER})")).await;
}

/// The session that holds the lock of the feeder.
async fn holder(database: &Database) -> i32 {
    until_fed(database).await;
    sqlx::query_scalar(HOLDER).fetch_one(&database.pool).await.unwrap()
}

async fn until_another_holds(database: &Database, holder: i32) {
    database.eventually(&format!("select exists ({HOLDER} and pid <> {holder})")).await;
}

/// A gateway that can be killed: it has threads of its own.
struct Mortal {
    runtime: Option<Runtime>,
    gateway: LiveBox,
}

impl Mortal {
    fn start(database: &Database, nats: &Nats) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let gateway = tokio::task::block_in_place(|| runtime.block_on(start(database, nats)));
        Self { runtime: Some(runtime), gateway }
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }

    /// Stops its only thread. It goes on when the sender is dropped.
    fn freeze(&self) -> std::sync::mpsc::SyncSender<()> {
        let (thaw, frozen) = std::sync::mpsc::sync_channel(1);
        self.runtime.as_ref().unwrap().spawn(async move { frozen.recv() });
        thaw
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_gateway_takes_over_from_a_feeder_that_was_killed_without_a_gap_or_repeat() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let mut feeder = Mortal::start(&database, &nats);
    until_fed(&database).await;
    let (one, other) = (start(&database, &nats).await, start(&database, &nats).await);
    let (mut client, _) = follow(&one, json!({})).await;
    let (mut lost, _) = follow(&feeder.gateway, json!({})).await;
    publish(&database, 1, 700).await;
    assert_next(&mut client, 1, 700).await;
    assert_next(&mut lost, 1, 700).await;
    let mut late = database.pool.begin().await.unwrap();
    sqlx::query("select outbox.publish('a.late', '0')").execute(&mut *late).await.unwrap();
    publish(&database, 701, 710).await;
    feeder.kill();
    publish(&database, 711, 800).await;
    assert_next(&mut client, 701, 800).await;
    late.commit().await.unwrap();
    assert_next(&mut client, 0, 0).await;
    let (mut new, _) = follow(&other, json!({})).await;
    publish(&database, 801, 810).await;
    assert_next(&mut client, 801, 810).await;
    assert_next(&mut new, 801, 810).await;
    one.stop().await;
    other.stop().await;
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_gateway_takes_over_from_a_feeder_that_hangs_and_it_does_no_harm_later() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let mut feeder = Mortal::start(&database, &nats);
    until_fed(&database).await;
    let other = start(&database, &nats).await;
    let (mut client, _) = follow(&other, json!({})).await;
    publish(&database, 1, 10).await;
    assert_next(&mut client, 1, 10).await;
    let holder = holder(&database).await;
    let thaw = feeder.freeze();
    publish(&database, 11, 20).await;
    assert_next(&mut client, 11, 20).await;
    drop(thaw);
    until_another_holds(&database, holder).await;
    let (mut lost, _) = follow(&feeder.gateway, json!({})).await;
    for n in 21..=60 {
        publish(&database, n, n).await;
        for client in [&mut client, &mut lost] {
            assert_next(client, n, n).await;
        }
    }
    other.stop().await;
    feeder.kill();
    database.drop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_feeder_behind_which_another_has_written_writes_no_more_before_it_has_read_that() {
    let (database, nats) = (Database::new().await, Nats::start().await);
    let gateway = start(&database, &nats).await;
    let (mut client, _) = follow(&gateway, json!({})).await;
    let holder = holder(&database).await;
    publish(&database, 1, 3).await;
    assert_next(&mut client, 1, 3).await;
    let last = nats.messages("pgoutbox_live").await.pop().unwrap().payload;
    nats.jetstream().await.publish("pgoutbox.live", last).await.unwrap().await.unwrap();
    publish(&database, 4, 6).await;
    until_another_holds(&database, holder).await;
    assert_next(&mut client, 4, 6).await;
    gateway.stop().await;
    database.drop().await;
}
