//! Durations written as a number and a unit: `"500ms"`, `"5s"`, `"1.5h"`, `"5d"`. Pure.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

/// A text that is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a duration; write a number and a unit, \
     such as \"500ms\", \"5s\", \"10m\", \"12h\" or \"5d\""
)]
pub struct InvalidDuration {
    text: String,
}

/// The longest duration accepted: ten years.
const LONGEST_SECONDS: f64 = 10.0 * 366.0 * 86_400.0;

/// Parses a number and a unit (`ms`, `s`, `m`, `h`, `d`).
///
/// # Errors
/// When there is no unit, the number is not a plain non-negative decimal, or the result is above ten years.
pub fn parse(text: &str) -> Result<Duration, InvalidDuration> {
    let invalid = || InvalidDuration { text: text.chars().take(40).collect() };
    let unit_at = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(invalid)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(invalid()),
    };
    if !number.starts_with(|c: char| c.is_ascii_digit()) || number.ends_with('.') {
        return Err(invalid());
    }
    let seconds = number.parse::<f64>().map_err(|_| invalid())? * seconds_per_unit;
    if seconds > LONGEST_SECONDS {
        return Err(invalid());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Writes a duration in the largest unit that shows it as a whole number, or in milliseconds.
#[must_use]
pub fn format(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, length) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if milliseconds >= length && milliseconds.is_multiple_of(length) {
            return format!("{}{unit}", milliseconds / length);
        }
    }
    format!("{milliseconds}ms")
}

/// Used by `#[serde(with = "crate::delivery::duration")]`.
///
/// # Errors
/// When the value is not a string that [`parse`] accepts.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).map_err(serde::de::Error::custom)
}

/// Used by `#[serde(with = "crate::delivery::duration")]`.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*duration))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_and_a_unit_is_read() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("5s", 5_000),
            ("1.5s", 1_500),
            ("2m", 120_000),
            ("12h", 43_200_000),
            ("5d", 432_000_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "5", "s", "-5s", "5 s", "5sec", "1e3s", ".5s", "5.s", "1.2.3s", "99999999d", "∞s"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_formatted_duration_can_be_parsed() {
        for milliseconds in [0, 1, 999, 1_000, 90_000, 3_600_000, 86_400_000, 90_061_001] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
