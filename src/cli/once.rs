//! `run --once`: when a relay has done what is due, it drains and the program ends.

use std::time::{Duration, Instant};

use crate::{
    admin::{Error, Operator},
    sink::servers::Servers,
};

/// Time between two looks; longer where a look takes long.
const PACE: Duration = Duration::from_millis(100);
/// How long what is due may stay as it is: behind a breaker, or while the database is away. The time that
/// migrations take does not count.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a relay that runs once leaves.
pub(super) enum Left {
    /// Nothing that is due.
    Nothing,
    /// So much that is due and does not get on; none if that could not be read.
    Stuck(Option<i64>),
    /// All of it, because the outbox belongs to another database. Why, as a sentence.
    Fenced(String),
}

/// Waits until nothing is due, or what is due does not get on. `environment` is that of the relay.
pub(super) async fn until_idle(servers: &Servers, pooler: bool, environment: &str) -> Left {
    let mut operator = None;
    let (mut due, mut since) = (None, Instant::now());
    loop {
        let looked = Instant::now();
        let counted = match look(servers, pooler, environment, &mut operator).await {
            Ok(Look { fenced: Some(why), .. }) => return Left::Fenced(why),
            // The first relay of an outbox takes it into use, also when nothing is due.
            Ok(Look { due: 0, is_new: false, .. }) => return Left::Nothing,
            Ok(Look { due, .. }) => Some(due),
            Err(error) => {
                operator = None;
                if matches!(error, Error::NotMigrated) {
                    since = Instant::now();
                }
                None
            }
        };
        if gets_on(due, counted) {
            (due, since) = (counted, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            return Left::Stuck(counted);
        }
        let mut pause = tokio::time::interval(PACE.max(10 * looked.elapsed()));
        pause.tick().await;
        pause.tick().await;
    }
}

/// Whether clearly less is due now, or more came. The probes of a breaker take one after the other away,
/// which could go on for hours: less than a tenth does not count.
fn gets_on(before: Option<i64>, now: Option<i64>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => now > before || before - now >= (before / 10).max(1),
        (before, now) => before.is_none() && now.is_some(),
    }
}

/// What is found in a database.
struct Look {
    /// How much is due.
    due: i64,
    /// Why nothing may be sent, if so.
    fenced: Option<String>,
    /// Whether no relay has run in it yet.
    is_new: bool,
}

async fn look(
    servers: &Servers,
    pooler: bool,
    environment: &str,
    operator: &mut Option<Operator>,
) -> Result<Look, Error> {
    let connected = match operator.take() {
        Some(connected) => connected,
        None => Operator::connect(servers, pooler).await?,
    };
    let operator = operator.insert(connected);
    let due = operator.count_due().await?;
    Ok(Look { due, fenced: operator.fenced(environment).await?, is_new: operator.is_new().await? })
}

#[cfg(test)]
mod tests {
    use super::gets_on;

    #[test]
    fn what_the_probes_of_a_breaker_take_away_is_no_progress() {
        for (before, now, expected) in [
            (None, Some(5), true),
            (None, None, false),
            (Some(5), None, false),
            (Some(500), Some(490), false),
            (Some(500), Some(450), true),
            (Some(500), Some(500), false),
            (Some(500), Some(501), true),
            (Some(3), Some(2), true),
        ] {
            assert_eq!(gets_on(before, now), expected, "{before:?} {now:?}");
        }
    }
}
