//! Sets of integers as ranges: positions that are owed, and numbers of settled pairs. Pure.

use std::{fmt, ops::Range, str::FromStr};

/// A set of whole numbers, kept as ascending ranges with gaps between them. PostgreSQL calls it a multirange.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    spans: Vec<Range<i64>>,
}

/// The text is not a multirange of integers, or a range has no lower or upper bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a multirange of integers")]
pub struct NotRanges;

impl Ranges {
    /// Adds a number. Fast if numbers are added in ascending order.
    pub fn insert(&mut self, number: impl Into<i64>) {
        let number = number.into();
        match self.spans.last_mut() {
            Some(last) if number == last.end => last.end += 1,
            Some(last) if number < last.end => self.insert_before_end(number),
            _ => self.spans.push(number..number + 1),
        }
    }

    fn insert_before_end(&mut self, number: i64) {
        let at = self.spans.partition_point(|span| span.end < number);
        let Some(span) = self.spans.get_mut(at) else { return };
        if span.contains(&number) {
            return;
        }
        if number == span.end {
            span.end += 1;
            if self.spans.get(at + 1).is_some_and(|next| next.start == number + 1) {
                let next = self.spans.remove(at + 1);
                self.spans[at].end = next.end;
            }
        } else if number + 1 == span.start {
            span.start = number;
        } else {
            self.spans.insert(at, number..number + 1);
        }
    }

    /// Number of integers in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.iter().map(|span| usize::try_from(span.end - span.start).unwrap_or(usize::MAX)).sum()
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether a number is in the set.
    #[must_use]
    pub fn contains(&self, number: i64) -> bool {
        let at = self.spans.partition_point(|span| span.end <= number);
        self.spans.get(at).is_some_and(|span| span.contains(&number))
    }

    /// All numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = i64> + '_ {
        self.spans.iter().flat_map(Clone::clone)
    }

    /// Splits the set into parts of at most `most` numbers, in ascending order.
    #[must_use]
    pub fn split(&self, most: usize) -> Vec<Self> {
        let most = most.max(1);
        let mut parts = Vec::new();
        let mut part = Self::default();
        let mut room = most;
        for span in &self.spans {
            let mut rest = span.clone();
            while !rest.is_empty() {
                let end = rest.end.min(rest.start.saturating_add(i64::try_from(room).unwrap_or(i64::MAX)));
                room -= usize::try_from(end - rest.start).unwrap_or(room);
                part.spans.push(rest.start..end);
                rest.start = end;
                if room == 0 {
                    parts.push(std::mem::take(&mut part));
                    room = most;
                }
            }
        }
        if !part.is_empty() {
            parts.push(part);
        }
        parts
    }
}

impl<N: Into<i64>> FromIterator<N> for Ranges {
    fn from_iter<I: IntoIterator<Item = N>>(numbers: I) -> Self {
        let mut ranges = Self::default();
        numbers.into_iter().for_each(|number| ranges.insert(number));
        ranges
    }
}

/// In PostgreSQL's format: `{[1,4),[7,8)}`.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (at, span) in self.spans.iter().enumerate() {
            write!(f, "{}[{},{})", if at > 0 { "," } else { "" }, span.start, span.end)?;
        }
        f.write_str("}")
    }
}

impl FromStr for Ranges {
    type Err = NotRanges;

    fn from_str(text: &str) -> Result<Self, NotRanges> {
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or(NotRanges)?;
        let mut spans = Vec::new();
        for part in inner.split(')').map(|part| part.trim_start_matches(',')).filter(|part| !part.is_empty())
        {
            let (start, end) =
                part.strip_prefix('[').and_then(|span| span.split_once(',')).ok_or(NotRanges)?;
            spans.push(start.parse().map_err(|_| NotRanges)?..end.parse().map_err(|_| NotRanges)?);
        }
        Ok(Self { spans })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_hold_what_a_set_holds_and_survive_postgresql_s_text(
            numbers in proptest::collection::vec(-50i64..50, 0..80),
            most in 1usize..20,
        ) {
            let set: BTreeSet<i64> = numbers.iter().copied().collect();
            let ranges: Ranges = numbers.iter().copied().collect();
            prop_assert_eq!(ranges.iter().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(ranges.len(), set.len());
            for number in -60..60 {
                prop_assert_eq!(ranges.contains(number), set.contains(&number));
            }
            prop_assert_eq!(&ranges.to_string().parse::<Ranges>().unwrap(), &ranges);
            let parts = ranges.split(most);
            prop_assert!(parts.iter().all(|part| (1..=most).contains(&part.len())));
            let joined: Vec<i64> = parts.iter().flat_map(Ranges::iter).collect();
            prop_assert_eq!(joined, ranges.iter().collect::<Vec<_>>());
            prop_assert!(parts.iter().rev().skip(1).all(|part| part.len() == most));
        }

        #[test]
        fn ranges_have_gaps_between_them(numbers in proptest::collection::vec(0i64..30, 0..60)) {
            let ranges: Ranges = numbers.into_iter().collect();
            prop_assert!(ranges.spans.windows(2).all(|two| two[0].end < two[1].start));
        }
    }

    #[test]
    fn text_that_is_not_a_multirange_is_refused() {
        for text in ["", "{", "{[1,2]}", "{[,3)}", "[1,2)", "{[a,b)}"] {
            assert_eq!(text.parse::<Ranges>(), Err(NotRanges), "{text}");
        }
        assert!("{}".parse::<Ranges>().unwrap().is_empty());
    }
}
