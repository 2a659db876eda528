//! When to try again what the database did not answer.

use std::time::Duration;

use backon::BackoffBuilder as _;

/// Endless waits between attempts to reach the database: 100 ms to 1 s, with jitter.
pub(crate) fn retry_waits() -> impl Iterator<Item = Duration> + Send {
    backon::ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(1))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}
