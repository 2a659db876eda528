//! How fast a command changes many rows: a rate such as `50/s`, kept by waits between small parts. Pure.

use std::time::Duration;

use crate::delivery::rate::Rate;

/// Rows in a part where there is no rate.
const UNPACED: i64 = 10_000;
/// Most rows in a part with a rate.
const LARGEST: f64 = 1_000.0;
/// Length of time that a part is for.
const PARTS_A_SECOND: f64 = 4.0;

/// A rate as it was typed.
pub(super) fn rate(text: &str) -> Result<String, String> {
    Rate::parse(text).map(|_| text.to_owned())
}

/// How long so many rows take.
pub(super) fn time_of(rate: Rate, rows: i64) -> Duration {
    Duration::try_from_secs_f64(rows.max(0) as f64 * rate.spacing).unwrap_or(Duration::MAX)
}

/// When the next part may begin, and how large it is. Times are those since the start.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace(Option<Rate>);

impl Pace {
    pub(super) fn new(rate: Option<Rate>) -> Self {
        Self(rate)
    }

    /// Rows in a part, of which `left` are wanted: what the rate allows in a quarter of a second.
    pub(super) fn part(self, left: i64) -> i64 {
        let part =
            self.0.map_or(UNPACED, |rate| (rate.per_second() / PARTS_A_SECOND).clamp(1.0, LARGEST) as i64);
        part.min(left)
    }

    /// When the part after one of so many rows may begin, which began at this time. A part that came late is
    /// not made up for: the rate is never exceeded.
    pub(super) fn next(self, began: Duration, rows: i64) -> Duration {
        began.saturating_add(self.0.map_or(Duration::ZERO, |rate| time_of(rate, rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Rate {
        Rate::parse(text).unwrap()
    }

    /// When each row of so many was changed, in virtual time, where each part takes `cost`.
    fn times(pace: Pace, rows: i64, cost: impl Fn(usize) -> Duration) -> Vec<Duration> {
        let (mut now, mut times) = (Duration::ZERO, Vec::new());
        for n in 0.. {
            let part = pace.part(rows - times.len() as i64);
            if part == 0 {
                break;
            }
            times.extend(std::iter::repeat_n(now, part as usize));
            now = pace.next(now, part).max(now + cost(n));
        }
        times
    }

    #[test]
    fn the_rate_is_kept_and_never_exceeded_whatever_a_part_takes() {
        for text in ["1/h", "7/m", "1/s", "3/s", "20/s", "50/s", "999/s", "123456/s"] {
            let rate = of(text);
            for cost in [0, 90, 400] {
                // Each tenth part is slow.
                let cost = |n: usize| Duration::from_millis(if n % 10 == 9 { 10 * cost } else { cost });
                let pace = Pace::new(Some(rate));
                let times = times(pace, 500, cost);
                assert_eq!(times.len(), 500);
                let part = pace.part(i64::MAX) as usize;
                for (first, at) in times.iter().enumerate() {
                    for (n, later) in times.iter().enumerate().skip(first + part) {
                        let allowed = (*later - *at).as_secs_f64() * rate.per_second() + part as f64;
                        assert!((n - first) as f64 <= allowed + 0.01, "{text}: rows {first} to {n}");
                    }
                }
            }
            let last = *times(Pace::new(Some(rate)), 500, |_| Duration::ZERO).last().unwrap();
            let whole = time_of(rate, 500);
            let lacks = whole.saturating_sub(last + time_of(rate, pace_of(rate)));
            assert!(last <= whole && lacks < Duration::from_millis(1), "{text}: {last:?}");
        }
    }

    fn pace_of(rate: Rate) -> i64 {
        Pace::new(Some(rate)).part(i64::MAX)
    }

    #[test]
    fn without_a_rate_parts_are_large_and_follow_at_once() {
        let pace = Pace::new(None);
        assert_eq!((pace.part(25_000), pace.part(3)), (10_000, 3));
        assert_eq!(pace.next(Duration::from_secs(2), 10_000), Duration::from_secs(2));
    }
}
