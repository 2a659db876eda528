//! How fast a command changes many rows: a rate such as `50/s`, kept by waits between small parts. Pure.

use std::{str::FromStr, time::Duration};

/// Rows in a part where there is no rate.
const UNPACED: i64 = 10_000;
/// Most rows in a part with a rate.
const LARGEST: f64 = 1_000.0;
/// Length of time that a part is for.
const PARTS_A_SECOND: f64 = 4.0;

/// Rows in a time, such as `50/s`, `300/m` or `1000/h`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rate {
    per_second: f64,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || "write a number from 1 to 9999999 and a unit: 50/s, 300/m, 1000/h".to_owned();
        let (count, unit) = text.split_once('/').ok_or_else(refused)?;
        let seconds = match unit {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(refused()),
        };
        let is_count = (1..=7).contains(&count.len()) && count.bytes().all(|digit| digit.is_ascii_digit());
        let count = count.parse::<u32>().ok().filter(|&count| is_count && count > 0).ok_or_else(refused)?;
        Ok(Self { per_second: f64::from(count) / seconds })
    }
}

impl Rate {
    /// How long so many rows take.
    pub(super) fn time_of(self, rows: i64) -> Duration {
        Duration::try_from_secs_f64(rows.max(0) as f64 / self.per_second).unwrap_or(Duration::MAX)
    }
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
            self.0.map_or(UNPACED, |rate| (rate.per_second / PARTS_A_SECOND).clamp(1.0, LARGEST) as i64);
        part.min(left)
    }

    /// When the part after one of so many rows may begin, which began at this time. A part that came late is
    /// not made up for: the rate is never exceeded.
    pub(super) fn next(self, began: Duration, rows: i64) -> Duration {
        began.saturating_add(self.0.map_or(Duration::ZERO, |rate| rate.time_of(rows)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
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
    fn rates_are_parsed() {
        assert_eq!(rate("50/s").per_second, 50.0);
        assert_eq!(rate("300/m").per_second, 5.0);
        assert_eq!(rate("7200/h").per_second, 2.0);
        for wrong in ["", "50", "/s", "0/s", "-1/s", "+1/s", "1.5/s", "50/d", "50/ss", "12345678/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_rate_is_kept_and_never_exceeded_whatever_a_part_takes() {
        for text in ["1/h", "7/m", "1/s", "3/s", "20/s", "50/s", "999/s", "123456/s"] {
            let rate = rate(text);
            for cost in [0, 90, 400] {
                // Each tenth part is slow.
                let cost = |n: usize| Duration::from_millis(if n % 10 == 9 { 10 * cost } else { cost });
                let pace = Pace::new(Some(rate));
                let times = times(pace, 500, cost);
                assert_eq!(times.len(), 500);
                let part = pace.part(i64::MAX) as usize;
                for (first, at) in times.iter().enumerate() {
                    for (n, later) in times.iter().enumerate().skip(first + part) {
                        let allowed = (*later - *at).as_secs_f64() * rate.per_second + part as f64;
                        assert!((n - first) as f64 <= allowed + 0.01, "{text}: rows {first} to {n}");
                    }
                }
            }
            let last = *times(Pace::new(Some(rate)), 500, |_| Duration::ZERO).last().unwrap();
            let whole = rate.time_of(500);
            let lacks = whole.saturating_sub(last + rate.time_of(pace_of(rate)));
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
