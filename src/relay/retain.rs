//! Makes partitions ahead, drops those that are old enough, and deletes old ids and dead letters. The
//! database decides what may leave and lets one relay at a time do it; a lock that publishers could wait
//! behind is waited for no longer than 100 ms. A crash here costs nothing: the next look, of any relay,
//! goes on.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

use super::parts::Base;
use crate::store::{Done, Error, Kept, Step};

/// How long a stop waits for a look that is under way.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// Steps of a kind in one look at a log.
const STEPS: usize = 200;
/// How often a lock is tried in one look.
const TRIES: usize = 5;
/// Pause after a step that changed many rows, so that others have their turn.
const PAUSE: Duration = Duration::from_millis(50);
/// Shortest pause before a lock is tried again; up to four times as long.
const LOCKED: Duration = Duration::from_millis(500);

/// What is deleted by its time may have committed so much later.
const LATE: TimeDelta = TimeDelta::hours(1);
/// How often it is looked for from the beginning.
const FROM_THE_BEGINNING: Duration = Duration::from_secs(86_400);

/// Looks regularly until the relay is stopped.
pub(super) async fn retain(base: Arc<Base>, shutdown: CancellationToken) {
    let every = base.settings.retention.look_every;
    let first = base.settings.retention.first_look;
    let mut retain =
        Retain { base, kept: Vec::new(), refused: Default::default(), after: [None; 2], has_said: false };
    // Relays that start together do not look together.
    let mut wait = first.mul_f64(0.5 + 0.5 * rand::random::<f64>());
    loop {
        tokio::select! {
            biased; // a relay that runs once looks once
            () = pause(wait) => {}
            () = shutdown.cancelled() => return,
        }
        let too_late = async {
            shutdown.cancelled().await;
            pause(ENDS_WITHIN).await;
        };
        let looked = tokio::select! {
            // Boxed: the stages begin with their futures on the stack.
            looked = Box::pin(retain.look()) => looked,
            () = too_late => return,
        };
        for error in looked {
            retain.base.telemetry.database_failed("retain", &error);
        }
        retain.base.telemetry.retention_looked();
        wait = every.mul_f64(0.9 + 0.2 * rand::random::<f64>());
    }
}

struct Retain {
    base: Arc<Base>,
    /// What was found by the last look.
    kept: Vec<Kept>,
    /// The last problem of each log.
    refused: [Option<String>; 2],
    /// Where the next look at `event_ids` and at `dead_letters` begins, and since when that is known.
    after: [Option<(DateTime<Utc>, Instant)>; 2],
    /// Whether it is said what is kept for ever.
    has_said: bool,
}

impl Retain {
    /// Looks at everything. What fails does not keep the rest from being done.
    async fn look(&mut self) -> Vec<Error> {
        let settings = &self.base.settings.retention;
        let mut errors = Vec::new();
        let [of_events, of_attempts] = &mut self.refused;
        let logs = [("events", settings.events, of_events), ("attempts", settings.attempts, of_attempts)];
        for (log, period, refused) in logs {
            if period.is_none() && !self.has_said {
                errors.extend(self.base.store.keep_for_ever(log).await.err());
            }
            if let Some(period) = period {
                errors.extend(make(&self.base, log, period, refused).await.err());
                errors.extend(drop_old(&self.base, log, period).await.err());
            }
        }
        let [of_ids, of_letters] = &mut self.after;
        let tables =
            [("event_ids", settings.event_ids, of_ids), ("dead_letters", settings.dead_letters, of_letters)];
        for (table, period, after) in tables {
            if period.is_none() && !self.has_said {
                errors.extend(self.base.store.keep_for_ever(table).await.err());
            }
            if let Some(period) = period {
                errors.extend(delete_old(&self.base, table, period, after).await.err());
            }
        }
        self.has_said = errors.is_empty();
        match self.base.store.load_kept().await {
            Ok(kept) => self.tell(kept),
            Err(error) => errors.push(error),
        }
        errors
    }

    fn tell(&mut self, kept: Vec<Kept>) {
        for log in ["events", "attempts"] {
            let count = kept.iter().filter(|one| one.log == log).count();
            self.base.telemetry.kept_measured(log, count);
        }
        for new in kept.iter().filter(|one| !self.kept.contains(one)) {
            self.base.telemetry.partition_kept(new);
        }
        self.kept = kept;
    }
}

/// Makes the partitions that are missing.
async fn make(
    base: &Base,
    log: &'static str,
    period: Duration,
    refused: &mut Option<String>,
) -> Result<(), Error> {
    let mut locked = 0;
    for _ in 0..STEPS {
        let Step { done, partition, problem, .. } = base.store.make_partition(log, period).await?;
        match done {
            Done::Made => base.telemetry.partition_made(log, partition.as_deref().unwrap_or_default()),
            Done::Locked if locked < TRIES => {
                locked += 1;
                wait_for_lock().await;
            }
            Done::Refused | Done::Locked => {
                if *refused != problem {
                    base.telemetry.partition_refused(log, problem.as_deref().unwrap_or_default());
                }
                *refused = problem;
                return Ok(());
            }
            Done::Nothing | Done::Busy => break,
            Done::Prepared | Done::Dropped | Done::Emptied | Done::Copied | Done::Deleted => {}
        }
    }
    *refused = None;
    Ok(())
}

/// Drops the partitions that may be dropped.
async fn drop_old(base: &Base, log: &'static str, period: Duration) -> Result<(), Error> {
    let laggard = base.settings.retention.laggard.code();
    let mut locked = 0;
    for _ in 0..STEPS {
        let Step { done, partition, rows, .. } = base.store.drop_partition(log, period, laggard).await?;
        let partition = partition.as_deref().unwrap_or_default();
        match done {
            Done::Dropped => base.telemetry.partition_dropped(log, partition),
            Done::Emptied => base.telemetry.partition_emptied(log, partition),
            Done::Copied => {
                base.telemetry.owed_copied(partition, rows);
                pause(PAUSE).await;
            }
            Done::Deleted => {
                base.telemetry.old_rows_deleted(log, rows);
                pause(PAUSE).await;
            }
            Done::Locked if locked < TRIES => {
                locked += 1;
                wait_for_lock().await;
            }
            _ => break,
        }
    }
    Ok(())
}

/// Deletes what is old of a table, in the order of its time. Entries of deleted rows stay in the index until
/// a vacuum, so each look begins where the last one ended, and once in a while at the beginning: what
/// committed late may lie there.
async fn delete_old(
    base: &Base,
    table: &'static str,
    period: Duration,
    known: &mut Option<(DateTime<Utc>, Instant)>,
) -> Result<(), Error> {
    if known.is_some_and(|(_, since)| since.elapsed() > FROM_THE_BEGINNING) {
        *known = None;
    }
    let since = known.map_or_else(Instant::now, |(_, since)| since);
    let mut after = known.map(|(after, _)| after - LATE);
    for _ in 0..STEPS {
        let (rows, newest) = base.store.delete_old(table, period, after).await?;
        if rows == 0 {
            break;
        }
        base.telemetry.old_rows_deleted(table, rows);
        after = newest.or(after);
        *known = after.map(|after| (after, since));
        pause(PAUSE).await;
    }
    Ok(())
}

async fn wait_for_lock() {
    pause(LOCKED.mul_f64(1.0 + 3.0 * rand::random::<f64>())).await;
}

async fn pause(length: Duration) {
    tokio::time::sleep_until((Instant::now() + length).into()).await;
}
