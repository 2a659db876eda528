//! Moments as people write them: `2026-01-31T12:00:00Z`, or a distance such as `2h`.

use std::{str::FromStr, time::Duration};

use crate::{admin::Operator, delivery::duration};
use chrono::{DateTime, Utc};

/// An instant, or how far it is from now by the database's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    At(DateTime<Utc>),
    Distance(Duration),
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(length) = duration::parse(text) {
            return Ok(Self::Distance(length));
        }
        let instant = DateTime::parse_from_rfc3339(text);
        instant
            .map(|at| Self::At(at.to_utc()))
            .map_err(|_| "write an instant such as 2026-01-31T12:00:00Z, or a distance such as 2h".to_owned())
    }
}

impl Moment {
    /// The distance lies behind us.
    pub(super) async fn past(self, operator: &mut Operator) -> anyhow::Result<DateTime<Utc>> {
        match self {
            Self::At(instant) => Ok(instant),
            Self::Distance(length) => Ok(operator.read_clock(length.as_secs_f64()).await?),
        }
    }

    /// The distance lies before us.
    pub(super) async fn to_come(self, operator: &mut Operator) -> anyhow::Result<DateTime<Utc>> {
        match self {
            Self::At(instant) => Ok(instant),
            Self::Distance(length) => Ok(operator.read_clock(-length.as_secs_f64()).await?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_and_distances_are_told_apart() {
        assert_eq!("2h".parse(), Ok(Moment::Distance(Duration::from_secs(7200))));
        assert!(
            matches!("2026-01-31T12:00:00+01:00".parse(), Ok(Moment::At(at)) if at.to_rfc3339() == "2026-01-31T11:00:00+00:00")
        );
        assert!("yesterday".parse::<Moment>().is_err());
    }
}
