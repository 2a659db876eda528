//! Times on the command line. Read: `2026-01-31T12:00:00Z`, or a duration such as `2h` from now. Shown to
//! people: the time of this machine, to the second; JSON has UTC.

use std::{
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use crate::{admin::Operator, delivery::duration};
use chrono::{DateTime, Local, Utc};

/// Whether people are shown UTC.
static IN_UTC: AtomicBool = AtomicBool::new(false);

/// A time, or a duration from now by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(DateTime<Utc>),
    Duration(Duration),
}

/// Shows people UTC from now on.
pub(super) fn show_utc() {
    IN_UTC.store(true, Ordering::Relaxed);
}

/// A time as people are shown it.
pub(super) fn shown(at: DateTime<Utc>) -> String {
    if IN_UTC.load(Ordering::Relaxed) {
        at.format("%Y-%m-%d %H:%M:%SZ").to_string()
    } else {
        at.with_timezone(&Local).format("%Y-%m-%d %H:%M:%S").to_string()
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(length) = duration::parse(text) {
            return Ok(Self::Duration(length));
        }
        let instant = DateTime::parse_from_rfc3339(text);
        instant
            .map(|at| Self::At(at.to_utc()))
            .map_err(|_| "write a time such as 2026-01-31T12:00:00Z, or a duration such as 2h".to_owned())
    }
}

/// The time of a `--since`, if there is one; a duration is subtracted from now.
pub(super) async fn past(
    since: Option<Moment>,
    operator: &mut Operator,
) -> anyhow::Result<Option<DateTime<Utc>>> {
    match since {
        Some(moment) => Ok(Some(moment.past(operator).await?)),
        None => Ok(None),
    }
}

impl Moment {
    async fn past(self, operator: &mut Operator) -> anyhow::Result<DateTime<Utc>> {
        match self {
            Self::At(instant) => Ok(instant),
            Self::Duration(length) => Ok(operator.read_clock(length.as_secs_f64()).await?),
        }
    }

    /// The time; a duration is added to now.
    pub(super) async fn future(self, operator: &mut Operator) -> anyhow::Result<DateTime<Utc>> {
        match self {
            Self::At(instant) => Ok(instant),
            Self::Duration(length) => Ok(operator.read_clock(-length.as_secs_f64()).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_durations_are_parsed() {
        assert_eq!("2h".parse(), Ok(Moment::Duration(Duration::from_secs(7200))));
        let at = "2026-01-31T11:00:00Z".parse().unwrap();
        assert_eq!("2026-01-31T12:00:00+01:00".parse(), Ok(Moment::At(at)));
        assert!("yesterday".parse::<Moment>().is_err());
    }
}
