//! `dead-letters redrive` by filter: in parts, at a rate, until a signal.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{
    bulk::Bulk,
    exit::Exit,
    pace::{Pace, time_of},
    print,
    progress::{Progress, about},
    signals::Signals,
};
use crate::{
    admin::{BulkVerb, DeadLetterFilter, Operator},
    delivery::rate::Rate,
};

const WHAT: &str = "dead letter";

/// Redrives what matches, oldest first. Prints how many.
pub(super) async fn redrive(
    operator: &mut Operator,
    choice: DeadLetterFilter,
    bulk: &Bulk,
    rate: Option<Rate>,
) -> anyhow::Result<Exit> {
    let mut signals = Signals::new()?;
    let count = operator.count_dead_letters(&choice).await?;
    // A rate is a limit of its own.
    let wanted =
        if rate.is_some() && !bulk.is_limited() { count.redrivable } else { bulk.of(count.redrivable) };
    if bulk.dry_run {
        bulk.report(BulkVerb::Redrive, wanted, count.redrivable)?;
        if let Some(rate) = rate {
            print::note!("at this rate it takes {}", about(time_of(rate, wanted)));
        }
        return Ok(Exit::Done);
    }
    // Those that are given up again meanwhile are left alone: else one that fails at once goes round.
    let now = operator.read_clock(0.0).await?;
    let choice = DeadLetterFilter { until: Some(choice.until.map_or(now, |until| until.min(now))), ..choice };
    let (pace, began) = (Pace::new(rate), Instant::now());
    let progress = Progress::new("redriven", wanted);
    let (mut redriven, mut wait, mut is_interrupted) = (0, Duration::ZERO, false);
    while redriven < wanted {
        progress.show(redriven, rate.map(|rate| time_of(rate, wanted - redriven)));
        // A part is one transaction: a signal ends the command between two of them.
        if timeout(wait, signals.next()).await.is_ok() {
            is_interrupted = true;
            break;
        }
        let at = began.elapsed();
        let part = pace.part(wanted - redriven);
        let done = operator.redrive_dead_letters(&choice, i32::try_from(part).unwrap_or(i32::MAX)).await?;
        redriven += done;
        if done < part {
            break;
        }
        wait = pace.next(at, done).saturating_sub(began.elapsed());
    }
    drop(progress);
    let left = operator.count_dead_letters(&choice).await?;
    bulk.report(BulkVerb::Redrive, redriven, left.redrivable)?;
    if left.matching > left.redrivable {
        let orphaned = print::counted(left.matching - left.redrivable, WHAT);
        print::note!(
            "{orphaned} cannot be redriven: their subscription was removed, or their event could not be read"
        );
    }
    if is_interrupted {
        print::note!("interrupted after {}", print::counted(redriven, WHAT));
        return Ok(Exit::Failed);
    }
    Ok(Exit::Done)
}
