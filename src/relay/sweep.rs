//! Finds due deliveries among those that were settled while an old transaction was open: their dead entries
//! stay in the index, and a look at all due times passes each of them. When such a look takes too long, the
//! relay looks no further back than a minute, and sweeps the table block by block for what fell due before.
//!
//! A crash here costs nothing.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{
    await_work::DOORBELL,
    parts::{Base, Waiting},
};
use crate::{
    sink::sqlstate::Class,
    store::{Error, Freshened},
};

/// A look at all due times that takes longer meets too many dead entries.
const SLOW: Duration = Duration::from_secs(1);
/// How far back the relay looks then.
const BACK: Duration = Duration::from_secs(60);
/// Time between two sweeps.
const EVERY: Duration = Duration::from_secs(60);
/// After so long all due times are looked at again.
const UNTIL: Duration = Duration::from_secs(600);
/// Blocks of the table in one statement.
const BLOCKS: i64 = 2_048;
/// Deliveries that one statement moves at most.
const AT_ONCE: i64 = 10_000;

/// Notes how a look at all due times went that began at `began`.
pub(super) fn looked<T>(base: &Base, waiting: &Waiting, began: Instant, result: &Result<T, Error>) {
    let is_slow = match result {
        Ok(_) => began.elapsed() > SLOW,
        Err(error) => error.class() == Some(Class::Canceled),
    };
    if is_slow && waiting.schedule.floor().is_none() {
        tracing::warn!(
            seconds = began.elapsed().as_secs_f64(),
            "looking for due deliveries takes long: probably a transaction is open for long and keeps those \
             that were settled; see pg_stat_activity.xact_start"
        );
        waiting.schedule.narrow(base.clock.now() - BACK);
    }
}

/// The sweeps of one relay.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    /// When the relay began to look back less far.
    narrow_since: Option<Instant>,
    last: Option<Instant>,
}

impl Sweeps {
    /// Sweeps if it is time to, until the relay is stopped.
    pub(super) async fn sweep(
        &mut self,
        base: &Base,
        waiting: &Waiting,
        shutdown: &CancellationToken,
    ) -> Result<(), Error> {
        let Some(floor) = waiting.schedule.floor() else {
            *self = Self::default();
            return Ok(());
        };
        if self.narrow_since.get_or_insert_with(Instant::now).elapsed() > UNTIL {
            waiting.schedule.widen();
            return Ok(());
        }
        if self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return Ok(());
        }
        let (mut block, mut found) = (0, false);
        while !shutdown.is_cancelled() {
            let Freshened { blocks, moved, subscriptions } =
                base.store.freshen_due(block, BLOCKS, floor, AT_ONCE).await?;
            found |= moved > 0;
            let index = base.index.load();
            for id in subscriptions {
                match index.get(id) {
                    Some(_) => waiting.schedule.fall_behind(id),
                    None => waiting.schedule.orphan(id),
                }
            }
            // When there are more than one statement moves, the same blocks are looked at again.
            if moved < AT_ONCE {
                block += BLOCKS;
            }
            if block >= blocks {
                break;
            }
        }
        self.last = Some(Instant::now());
        if found {
            base.store.ring(DOORBELL).await?;
        }
        Ok(())
    }
}
