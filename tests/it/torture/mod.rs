//! Relays under one fault after the other, chosen by a seed, for as long as is asked: `make torture`.
//! In rounds: publishers and faults, then everything heals, and what was published is compared with what
//! came.

mod faults;
mod record;
mod world;

use std::time::{Duration, Instant};

use self::{record::Record, world::World};
use crate::support::{database::version_and_day, seed};

/// Minutes for which round after round is run.
const MINUTES: &str = "PGOUTBOX_TEST_MINUTES";
/// A run of so many minutes is recorded in the book.
const RECORDED: u64 = 30;
/// How long faults happen in a round.
const ROUND: Duration = Duration::from_secs(110);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "make torture"]
async fn whatever_fails_nothing_is_lost_invented_or_out_of_order_and_duplicates_are_bounded() {
    let minutes: u64 = std::env::var_os(MINUTES).and_then(|text| text.to_str()?.parse().ok()).unwrap_or(10);
    let (first, began) = (seed(), Instant::now());
    let mut record = Record::new(first, minutes, version_and_day().await);
    for round in 0.. {
        if began.elapsed() >= Duration::from_secs(60 * minutes) {
            break;
        }
        let length = ROUND.min(Duration::from_secs(60 * minutes).saturating_sub(began.elapsed()));
        let mut world = World::start(first.wrapping_add(round)).await;
        world.torture(length).await;
        let balance = world.end().await;
        eprintln!("round {round}, seed {}: {balance:?}", first.wrapping_add(round));
        record.add(&balance);
        assert!(balance.violated.is_empty(), "seed {first}, round {round}: {balance:#?}");
    }
    eprintln!("{record}");
    if minutes >= RECORDED {
        record.write();
    }
}
