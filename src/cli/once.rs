//! `run --once`: when a relay has done what is due, it drains and the program ends.

use std::time::{Duration, Instant};

use crate::{admin::Operator, cli::config::Config};

/// Time between two looks; longer where a look takes long.
const PACE: Duration = Duration::from_millis(100);
/// How long what is due may stay as it is: behind a breaker, or while the database is away.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until nothing is due. Returns how much of it is left because it does not get on; none if that could
/// not be read.
pub(super) async fn until_idle(config: &Config) -> Option<i64> {
    let mut operator = None;
    let (mut due, mut since) = (None, Instant::now());
    loop {
        let looked = Instant::now();
        let counted = count(config, &mut operator).await;
        if counted == Some(0) {
            return Some(0);
        }
        if counted != due {
            (due, since) = (counted, Instant::now());
        }
        if since.elapsed() > PATIENCE {
            return due;
        }
        let mut pause = tokio::time::interval(PACE.max(10 * looked.elapsed()));
        pause.tick().await;
        pause.tick().await;
    }
}

async fn count(config: &Config, operator: &mut Option<Operator>) -> Option<i64> {
    if operator.is_none() {
        *operator =
            Some(Operator::connect(&config.connect_options().ok()?, config.database.pooler).await.ok()?);
    }
    let counted = operator.as_mut()?.count_due().await.ok();
    if counted.is_none() {
        *operator = None;
    }
    counted
}
