//! Organizations that share a relay.

use std::time::Duration;

use serde_json::json;

use super::{Live, publish, relay, subscribe_as};
use crate::support::{Database, Good};

/// Events of the backlog.
const BACKLOG: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time: make test runs it alone"]
async fn the_backlog_of_one_organization_does_not_delay_another() {
    let database = Database::new().await;
    let busy = Good::counting(Duration::from_millis(50)).await;
    subscribe_as(&database, "busy", "**", json!({ "url": busy.url }), Some("acme")).await;
    let mut live = Live::of(&database, "live.order", Some("globex")).await;
    let running = relay(&database).await;
    let alone = live.measure(&database, "an organization alone").await;
    publish(&database, "bulk.order", BACKLOG, Some("acme")).await;
    // Events are read in their order: the first one waits until those before it are read.
    live.one(&database, "just behind another's backlog", Duration::from_secs(3)).await;
    let beside = live.measure(&database, "beside another's backlog").await;
    let done = busy.switch.requests();
    eprintln!("{done} of {BACKLOG} of the backlog were sent");
    running.abort().await;
    assert!(done > 0 && done < BACKLOG as u64, "the backlog lasts while it is measured: {done}");
    beside.are_like(&alone);
    database.drop().await;
}
