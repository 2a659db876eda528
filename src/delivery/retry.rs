//! The wait before the next attempt: a pure function of policy, attempt and seed. The due time is stored.

use std::time::Duration;

use serde::Deserialize;

/// When failed attempts are retried, and when a delivery is given up. Stored in `subscriptions.retry`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    waits: Waits,
    /// Number of attempts, including the first.
    pub max_attempts: u32,
    /// Each wait varies by up to this share, up or down; 0 to 1.
    pub jitter: f64,
    /// A delivery that has been owed for longer is given up at its next failure.
    pub max_age: Duration,
    /// Attempts that fail for so long without a success disable the subscription; at least a minute. None for
    /// never.
    pub disable_after: Option<Duration>,
}

/// Shortest `retry.disable_after`: relays report every ten seconds.
const SHORTEST_DISABLE_AFTER: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq)]
enum Waits {
    Exponential { initial: Duration, multiplier: f64, max: Duration },
    Schedule(Vec<Duration>),
}

/// The JSON in `subscriptions.retry`. Every key is optional.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Json {
    max_attempts: Option<u32>,
    initial: Option<String>,
    multiplier: Option<f64>,
    max: Option<String>,
    jitter: Option<f64>,
    max_age: Option<String>,
    schedule: Option<Vec<String>>,
    disable_after: Option<String>,
}

impl Default for RetryPolicy {
    /// 12 attempts over about 2.3 days: waits of 5 s, 20 s, 80 s, … up to 12 h, each ± 20 %; a maximum age of
    /// 5 days.
    fn default() -> Self {
        Self {
            waits: Waits::Exponential {
                initial: Duration::from_secs(5),
                multiplier: 4.0,
                max: Duration::from_secs(12 * 3_600),
            },
            max_attempts: 12,
            jitter: 0.2,
            max_age: Duration::from_secs(5 * 86_400),
            disable_after: None,
        }
    }
}

impl RetryPolicy {
    /// Parses `subscriptions.retry`. The database checks most of this too; rows may bypass its check.
    ///
    /// # Errors
    /// A message that names the key.
    pub fn parse(json: &serde_json::Value) -> Result<Self, String> {
        let written: Json =
            serde_json::from_value(json.clone()).map_err(|error| format!("retry: {error}"))?;
        let duration = |key: &str, text: &Option<String>, default: Duration| match text {
            Some(text) => {
                crate::delivery::duration::parse(text).map_err(|error| format!("retry.{key}: {error}"))
            }
            None => Ok(default),
        };
        let default = Self::default();
        let max_age = duration("max_age", &written.max_age, default.max_age)?;
        let disable_after = written
            .disable_after
            .is_some()
            .then(|| duration("disable_after", &written.disable_after, Duration::ZERO))
            .transpose()?;
        if disable_after.is_some_and(|time| time < SHORTEST_DISABLE_AFTER) {
            return Err("retry.disable_after: must be at least 1m".to_owned());
        }
        let jitter = written.jitter.unwrap_or(default.jitter);
        if !(0.0..=1.0).contains(&jitter) {
            return Err(format!("retry.jitter: {jitter} is not between 0 and 1"));
        }
        if let Some(schedule) = &written.schedule {
            if written.initial.is_some()
                || written.multiplier.is_some()
                || written.max.is_some()
                || written.max_attempts.is_some()
            {
                return Err(
                    "retry.schedule: cannot be combined with initial, multiplier, max or max_attempts"
                        .to_owned(),
                );
            }
            let waits = schedule
                .iter()
                .map(|text| {
                    crate::delivery::duration::parse(text).map_err(|error| format!("retry.schedule: {error}"))
                })
                .collect::<Result<Vec<_>, _>>()?;
            if waits.is_empty() || waits.len() > 100 {
                return Err("retry.schedule: must be 1 to 100 durations".to_owned());
            }
            let max_attempts = u32::try_from(waits.len()).unwrap_or(100) + 1;
            return Ok(Self { waits: Waits::Schedule(waits), max_attempts, jitter, max_age, disable_after });
        }
        let multiplier = written.multiplier.unwrap_or(4.0);
        if !(1.0..=100.0).contains(&multiplier) {
            return Err(format!("retry.multiplier: {multiplier} is not between 1 and 100"));
        }
        let max_attempts = written.max_attempts.unwrap_or(default.max_attempts);
        if !(1..=1_000).contains(&max_attempts) {
            return Err(format!("retry.max_attempts: {max_attempts} is not between 1 and 1000"));
        }
        let initial = duration("initial", &written.initial, Duration::from_secs(5))?;
        let max = duration("max", &written.max, Duration::from_secs(12 * 3_600))?;
        Ok(Self {
            waits: Waits::Exponential { initial, multiplier, max: max.max(initial) },
            max_attempts,
            jitter,
            max_age,
            disable_after,
        })
    }

    /// The wait after a failed attempt (1 is the first). The same seed gives the same jitter.
    #[must_use]
    pub fn wait(&self, attempt: u32, seed: u64) -> Duration {
        let attempt = attempt.max(1);
        let plain = match &self.waits {
            Waits::Schedule(waits) => {
                let index = usize::try_from(attempt - 1).unwrap_or(usize::MAX).min(waits.len() - 1);
                waits.get(index).copied().unwrap_or_default().as_secs_f64()
            }
            Waits::Exponential { initial, multiplier, max } => {
                let exponent = i32::try_from(attempt - 1).unwrap_or(i32::MAX);
                (initial.as_secs_f64() * multiplier.powi(exponent)).min(max.as_secs_f64())
            }
        };
        let moved = plain * (1.0 + self.jitter * (2.0 * unit_interval(seed, attempt) - 1.0));
        Duration::from_secs_f64(moved.max(0.0))
    }
}

/// A pseudo-random number in [0, 1) that depends only on its arguments (SplitMix64).
fn unit_interval(seed: u64, attempt: u32) -> f64 {
    let mut state = seed.wrapping_add(u64::from(attempt).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^= state >> 31;
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
    let unit = (state >> 11) as f64 / (1u64 << 53) as f64;
    unit
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn without_jitter(policy: &RetryPolicy, attempt: u32) -> u64 {
        RetryPolicy { jitter: 0.0, ..policy.clone() }.wait(attempt, 7).as_secs()
    }

    #[test]
    fn the_default_grows_fourfold_from_5_seconds_to_12_hours() {
        let policy = RetryPolicy::parse(&json!({})).unwrap();
        assert_eq!(policy, RetryPolicy::default());
        let waits: Vec<u64> = (1..12).map(|attempt| without_jitter(&policy, attempt)).collect();
        assert_eq!(waits, [5, 20, 80, 320, 1_280, 5_120, 20_480, 43_200, 43_200, 43_200, 43_200]);
    }

    #[test]
    fn a_schedule_is_followed_and_its_length_is_the_limit() {
        let policy = RetryPolicy::parse(&json!({"schedule": ["5s", "5m", "2h"], "jitter": 0})).unwrap();
        assert_eq!(policy.max_attempts, 4);
        assert_eq!([1, 2, 3, 4].map(|attempt| policy.wait(attempt, 1).as_secs()), [5, 300, 7_200, 7_200]);
    }

    #[test]
    fn a_mistake_is_named() {
        for (json, named) in [
            (json!({"initial": "5"}), "retry.initial"),
            (json!({"max_attempts": 0}), "retry.max_attempts"),
            (json!({"jitter": 2}), "retry.jitter"),
            (json!({"multiplier": 0.5}), "retry.multiplier"),
            (json!({"schedule": []}), "retry.schedule"),
            (json!({"schedule": ["5s"], "max": "1h"}), "retry.schedule"),
            (json!({"disable_after": "59s"}), "retry.disable_after"),
            (json!({"disable_after": "5"}), "retry.disable_after"),
            (json!({"tries": 3}), "tries"),
        ] {
            let error = RetryPolicy::parse(&json).unwrap_err();
            assert!(error.contains(named), "{error} should name {named}");
        }
    }

    proptest! {
        #[test]
        fn a_wait_stays_within_its_jitter_and_below_the_maximum(
            attempt in 1u32..2_000,
            seed: u64,
            jitter in 0.0f64..=1.0,
        ) {
            let policy = RetryPolicy { jitter, ..RetryPolicy::default() };
            let plain = RetryPolicy { jitter: 0.0, ..policy.clone() }.wait(attempt, seed).as_secs_f64();
            let wait = policy.wait(attempt, seed).as_secs_f64();
            prop_assert!(wait >= plain * (1.0 - jitter) - 1e-6 && wait <= plain * (1.0 + jitter) + 1e-6);
            prop_assert!(plain <= 43_200.0);
        }

        #[test]
        fn without_jitter_waits_never_shrink(attempt in 1u32..100, seed: u64) {
            let policy = RetryPolicy { jitter: 0.0, ..RetryPolicy::default() };
            prop_assert!(policy.wait(attempt, seed) <= policy.wait(attempt + 1, seed));
        }
    }
}
