//! `run --once`: when a relay has done what is due, it drains and the program ends.

use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;

use crate::admin::{Error, Operator};

/// Time between two looks; longer where a look takes long.
const PACE: Duration = Duration::from_millis(100);
/// How long what is due may stay as it is: behind a breaker, or while the database is away. The time that
/// migrations take does not count.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until nothing is due. Returns how much of it is left because it does not get on; none if that could
/// not be read.
pub(super) async fn until_idle(options: &PgConnectOptions, pooler: bool) -> Option<i64> {
    let mut operator = None;
    let (mut due, mut since) = (None, Instant::now());
    loop {
        let looked = Instant::now();
        let counted = match count(options, pooler, &mut operator).await {
            Ok(0) => return Some(0),
            Ok(counted) => Some(counted),
            Err(error) => {
                operator = None;
                if matches!(error, Error::NotMigrated) {
                    since = Instant::now();
                }
                None
            }
        };
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

async fn count(
    options: &PgConnectOptions,
    pooler: bool,
    operator: &mut Option<Operator>,
) -> Result<i64, Error> {
    let connected = match operator.take() {
        Some(connected) => connected,
        None => Operator::connect(options, pooler).await?,
    };
    operator.insert(connected).count_due().await
}
