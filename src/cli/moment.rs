//! Times on the command line: `2026-01-31T12:00:00Z`, or a duration such as `2h` from now.

use std::{str::FromStr, time::Duration};

use crate::{admin::Operator, delivery::duration};
use chrono::{DateTime, Utc};

/// A time, or a duration from now by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(DateTime<Utc>),
    Duration(Duration),
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

impl Moment {
    /// The time; a duration is subtracted from now.
    pub(super) async fn past(self, operator: &mut Operator) -> anyhow::Result<DateTime<Utc>> {
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
