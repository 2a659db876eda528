//! How many deliveries may begin in a time, such as `50/s`. Pure.

/// A rate of deliveries.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Seconds between two deliveries.
    pub spacing: f64,
}

impl Rate {
    /// Reads a number of deliveries, 1 to 9,999,999, and the unit `s`, `m` or `h`.
    ///
    /// # Errors
    /// Says what a rate looks like.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = || format!("{text:?} is not a rate; write 50/s, 600/m or 1000/h");
        let (count, unit) = text.split_once('/').ok_or_else(refused)?;
        let seconds = match unit {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(refused()),
        };
        let is_plain = count.bytes().all(|digit| digit.is_ascii_digit()) && !count.starts_with('0');
        match count.parse::<u32>() {
            Ok(count) if is_plain && (1..10_000_000).contains(&count) => {
                Ok(Self { spacing: seconds / f64::from(count) })
            }
            _ => Err(refused()),
        }
    }

    /// Deliveries in a second.
    #[must_use]
    pub fn per_second(self) -> f64 {
        1.0 / self.spacing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_and_a_unit() {
        assert_eq!(Rate::parse("50/s"), Ok(Rate { spacing: 0.02 }));
        assert_eq!(Rate::parse("600/m"), Ok(Rate { spacing: 0.1 }));
        assert_eq!(Rate::parse("1/h"), Ok(Rate { spacing: 3_600.0 }));
        for text in ["", "50", "50/d", "50/ss", "0/s", "-1/s", "+1/s", "01/s", "1.5/s", "10000000/s", "50 /s"]
        {
            let refused = Rate::parse(text).unwrap_err();
            assert!(refused.contains("50/s"), "{refused}");
        }
    }
}
