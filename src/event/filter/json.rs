//! JSON as a tree whose numbers keep their text, and containment as `@>` defines it in SQL. Pure.
//!
//! `jsonb` holds numbers that common JSON types cannot: thirty digits, `1e400`. So a number is kept as text
//! and compared by its decimal value. Nesting is limited, so that walking a tree does not exhaust the stack.

use std::borrow::Cow;

/// Deepest nesting that filters, transforms and `match` can read, in levels. Deeper payloads are delivered to
/// subscriptions that do not read them.
pub(crate) const DEEPEST: usize = 128;

/// A JSON value that borrows from the text where possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Node<'t> {
    Null,
    Bool(bool),
    Number(Cow<'t, str>),
    Text(Cow<'t, str>),
    List(Vec<Node<'t>>),
    /// Fields in the order of the text. Of equal names the last one counts.
    Object(Vec<(Cow<'t, str>, Node<'t>)>),
}

impl<'t> Node<'t> {
    /// Parses a text.
    ///
    /// # Errors
    /// What is wrong with the text, without repeating any of it.
    pub(crate) fn parse(text: &'t str) -> Result<Self, &'static str> {
        let mut reader = Reader { text, at: 0 };
        let node = reader.value(0)?;
        reader.skip_space();
        if reader.at == text.len() { Ok(node) } else { Err("it is not JSON: something follows the value") }
    }

    /// The same value without borrowing.
    pub(crate) fn into_owned(self) -> Node<'static> {
        let owned = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Null => Node::Null,
            Self::Bool(value) => Node::Bool(value),
            Self::Number(text) => Node::Number(owned(text)),
            Self::Text(text) => Node::Text(owned(text)),
            Self::List(items) => Node::List(items.into_iter().map(Node::into_owned).collect()),
            Self::Object(fields) => Node::Object(
                fields.into_iter().map(|(name, value)| (owned(name), value.into_owned())).collect(),
            ),
        }
    }

    /// The value of a field, if this is an object that has it.
    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(fields) => {
                fields.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value)
            }
            _ => None,
        }
    }

    /// Whether it contains another value, as `@>` on `jsonb` defines it.
    pub(crate) fn contains(&self, wanted: &Node<'_>) -> bool {
        match (self, wanted) {
            // A list contains a scalar at the top level only: `[1] @> 1`, but not `[[1]] @> [1]`.
            (Self::List(items), scalar) if !scalar.is_container() => {
                items.iter().any(|item| item.is_scalar_equal(scalar))
            }
            _ => self.holds(wanted),
        }
    }

    fn holds(&self, wanted: &Node<'_>) -> bool {
        match (self, wanted) {
            (Self::Object(_), Node::Object(fields)) => {
                fields.iter().all(|(name, value)| self.get(name).is_some_and(|found| found.holds(value)))
            }
            // Order and repetition do not matter: `[1, 2] @> [2, 2]`.
            (Self::List(items), Node::List(wanted)) => {
                wanted.iter().all(|one| items.iter().any(|item| item.holds(one)))
            }
            _ => self.is_scalar_equal(wanted),
        }
    }

    /// Whether `jsonb` holds both as equal: order and repetition of fields do not matter, nor how a number is
    /// written.
    pub(crate) fn is_same(&self, other: &Node<'_>) -> bool {
        match (self, other) {
            (Self::Object(fields), Node::Object(others)) => {
                let is_same = |name| match (self.get(name), other.get(name)) {
                    (Some(one), Some(other)) => one.is_same(other),
                    _ => false,
                };
                fields.iter().chain(others).all(|(name, _)| is_same(name))
            }
            (Self::List(items), Node::List(others)) => {
                items.len() == others.len() && items.iter().zip(others).all(|(one, other)| one.is_same(other))
            }
            _ => self.is_scalar_equal(other),
        }
    }

    /// A scalar as normalized text: equal scalars have equal texts. None for lists and objects.
    pub(crate) fn as_scalar(&self) -> Option<String> {
        match self {
            Self::Null => Some("null".to_owned()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Number(text) => {
                let number = Decimal::of(text);
                Some(format!(
                    "{}{}e{}",
                    if number.negative { "-" } else { "" },
                    number.digits,
                    number.exponent
                ))
            }
            Self::Text(text) => Some(format!("\"{text}")),
            Self::List(_) | Self::Object(_) => None,
        }
    }

    fn is_container(&self) -> bool {
        matches!(self, Self::List(_) | Self::Object(_))
    }

    fn is_scalar_equal(&self, other: &Node<'_>) -> bool {
        match (self, other) {
            (Self::Null, Node::Null) => true,
            (Self::Bool(one), Node::Bool(other)) => one == other,
            (Self::Number(one), Node::Number(other)) => is_same_number(one, other),
            (Self::Text(one), Node::Text(other)) => one == other,
            _ => false,
        }
    }
}

/// Whether two JSON numbers have the same value, such as `1`, `1.0` and `1e0`.
pub(crate) fn is_same_number(one: &str, other: &str) -> bool {
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // Fast path: integers without exponent have one spelling each.
    one == other || (!(is_plain(one) && is_plain(other)) && Decimal::of(one) == Decimal::of(other))
}

/// A number as its significant digits, and the power of ten of a decimal point before the first of them.
#[derive(PartialEq, Eq)]
pub(crate) struct Decimal {
    negative: bool,
    digits: String,
    exponent: i64,
}

impl Decimal {
    pub(crate) fn of(text: &str) -> Self {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i64 =
            exponent.parse().unwrap_or(if exponent.starts_with('-') { i64::MIN / 2 } else { i64::MAX / 2 });
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: String = whole.chars().chain(fraction.chars()).collect();
        let significant = digits.trim_start_matches('0');
        let leading = i64::try_from(digits.len() - significant.len()).unwrap_or(0);
        let digits = significant.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Self { negative: false, digits, exponent: 0 };
        }
        let point = i64::try_from(whole.len()).unwrap_or(i64::MAX / 4) - leading;
        Self { negative, digits, exponent: exponent.saturating_add(point) }
    }

    /// The number without point and exponent, if it is an integer of at most 20 digits.
    pub(crate) fn as_integer(&self) -> Option<String> {
        let zeros = usize::try_from(self.exponent).ok()?.checked_sub(self.digits.len())?;
        let sign = if self.negative { "-" } else { "" };
        (self.digits.len() + zeros <= 20).then(|| format!("{sign}{}{}", self.digits, "0".repeat(zeros)))
    }
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\n' | b'\r' | b'\t')) {
            self.at += 1;
        }
    }

    /// Skips space; consumes the byte if it comes next and returns whether it did.
    fn consume(&mut self, byte: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn value(&mut self, depth: usize) -> Result<Node<'t>, &'static str> {
        self.skip_space();
        match self.peek() {
            Some(b'{' | b'[') if depth >= DEEPEST => Err("it is nested more than 128 levels deep"),
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Node::Text(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => {
                for (word, node) in
                    [("true", Node::Bool(true)), ("false", Node::Bool(false)), ("null", Node::Null)]
                {
                    if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
                        self.at += word.len();
                        return Ok(node);
                    }
                }
                Err("it is not JSON: a value is missing")
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Node<'t>, &'static str> {
        self.at += 1;
        let mut fields = Vec::new();
        if self.consume(b'}') {
            return Ok(Node::Object(fields));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err("it is not JSON: the name of a field is missing");
            }
            let name = self.string()?;
            if !self.consume(b':') {
                return Err("it is not JSON: a colon is missing");
            }
            fields.push((name, self.value(depth + 1)?));
            if self.consume(b'}') {
                return Ok(Node::Object(fields));
            }
            if !self.consume(b',') {
                return Err("it is not JSON: a comma or brace is missing");
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Node<'t>, &'static str> {
        self.at += 1;
        let mut items = Vec::new();
        if self.consume(b']') {
            return Ok(Node::List(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            if self.consume(b']') {
                return Ok(Node::List(items));
            }
            if !self.consume(b',') {
                return Err("it is not JSON: a comma or bracket is missing");
            }
        }
    }

    fn string(&mut self) -> Result<Cow<'t, str>, &'static str> {
        let start = self.at;
        let bytes = self.text.as_bytes();
        let mut escaped = false;
        loop {
            self.at += 1;
            match bytes.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    escaped = true;
                    self.at += 1;
                }
                Some(0..0x20) | None => return Err("it is not JSON: a string does not end"),
                Some(_) => {}
            }
        }
        self.at += 1;
        let quoted = self.text.get(start..self.at).ok_or("it is not JSON: a string does not end")?;
        if escaped {
            return serde_json::from_str::<String>(quoted)
                .map(Cow::Owned)
                .map_err(|_| "it has a string with an invalid escape");
        }
        Ok(Cow::Borrowed(&quoted[1..quoted.len() - 1]))
    }

    fn number(&mut self) -> Result<Node<'t>, &'static str> {
        let start = self.at;
        self.at += usize::from(self.peek() == Some(b'-'));
        let whole = self.digits();
        let leads_with_zero =
            self.text.as_bytes()[start..self.at].iter().find(|byte| **byte != b'-') == Some(&b'0');
        let mut good = whole == 1 || (whole > 1 && !leads_with_zero);
        if self.peek() == Some(b'.') {
            self.at += 1;
            good &= self.digits() > 0;
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            self.at += 1;
            self.at += usize::from(matches!(self.peek(), Some(b'+' | b'-')));
            good &= self.digits() > 0;
        }
        if good {
            Ok(Node::Number(Cow::Borrowed(&self.text[start..self.at])))
        } else {
            Err("it is not JSON: a number is malformed")
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_as_it_is_written_and_nothing_else_is() {
        for text in [
            "null",
            " true ",
            "[]",
            "{}",
            "-0",
            "1e400",
            "12345678901234567890123456789.10",
            r#""a\u0000\"\\é""#,
            r#"{"a":[1,{"b":null}]}"#,
        ] {
            let node = Node::parse(text).unwrap();
            if let Node::Number(number) = node {
                assert_eq!(number, text);
            }
        }
        assert_eq!(Node::parse(r#""a\u0000\"\\é""#).unwrap(), Node::Text("a\0\"\\é".into()));
        for text in [
            "",
            "nul",
            "[1,]",
            "{\"a\"}",
            "{a:1}",
            "01",
            "1.",
            "-",
            "1e",
            "\"",
            "\"\\",
            "\"\u{1}\"",
            "1 2",
            "[1",
            "\"\\ud800\"",
            "+1",
            "\"\\\"",
        ] {
            assert!(Node::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_without_a_deep_stack() {
        for deep in [DEEPEST + 1, 10_000, 1_000_000] {
            assert!(Node::parse(&("[".repeat(deep) + &"]".repeat(deep))).unwrap_err().contains("nested"));
        }
        assert!(Node::parse(&("[".repeat(DEEPEST) + &"]".repeat(DEEPEST))).is_ok());
    }

    #[test]
    fn numbers_are_equal_by_value() {
        for (one, other) in [
            ("1", "1.0"),
            ("1", "1e0"),
            ("100", "1E+2"),
            ("0.001", "1e-3"),
            ("0", "-0.000e7"),
            ("10.50", "10.5"),
            ("1e400", "10e399"),
        ] {
            assert!(is_same_number(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("1", "-1"),
            ("1", "10"),
            ("0.1", "0.01"),
            ("12345678901234567890123", "12345678901234567890124"),
            ("7", "70"),
            ("1e400", "1e401"),
        ] {
            assert!(!is_same_number(one, other), "{one} {other}");
        }
    }

    #[test]
    fn containment_is_that_of_sql() {
        for (value, wanted, expected) in [
            (r#"{"a": 1, "b": {"c": [1, 2]}}"#, r#"{"b": {"c": [2]}}"#, true),
            (r#"{"a": 1}"#, r#"{"a": 1.0}"#, true),
            (r#"{"a": 1}"#, r#"{"a": "1"}"#, false),
            (r#"{"a": null}"#, r#"{"a": null}"#, true),
            (r#"{"b": 1}"#, r#"{"a": null}"#, false),
            ("[1, 2]", "1", true),
            ("[[1]]", "[1]", false),
            ("[[1, 2]]", "[[2]]", true),
            ("1", "[1]", false),
            ("[1, 2]", "[2, 2, 1]", true),
            ("[]", "[]", true),
            ("{}", "[]", false),
            (r#"{"a": [1]}"#, r#"{"a": 1}"#, false),
        ] {
            assert_eq!(
                Node::parse(value).unwrap().contains(&Node::parse(wanted).unwrap()),
                expected,
                "{value} @> {wanted}"
            );
        }
    }
}
