//! JSON as it was written. A number of `jsonb` may have thirty digits or be `1e400`, which common types of
//! JSON round or refuse.

use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use super::filter::json::Node;

/// JSON whose numbers keep all their digits. Two are equal if `jsonb` holds them as equal.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JsonText(Box<RawValue>);

impl JsonText {
    /// The JSON, as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.get()
    }

    /// The JSON as a tree, whose numbers are rounded to 64 bits.
    ///
    /// # Errors
    /// A number is too large for that.
    pub fn value(&self) -> Result<Value, serde_json::Error> {
        serde_json::from_str(self.as_str())
    }

    /// Whether it is an object without fields.
    #[must_use]
    pub fn is_empty_object(&self) -> bool {
        Node::parse(self.as_str()).is_ok_and(|node| node == Node::Object(Vec::new()))
    }
}

impl From<Value> for JsonText {
    fn from(value: Value) -> Self {
        Self::from(&value)
    }
}

impl From<&Value> for JsonText {
    fn from(value: &Value) -> Self {
        // A value of JSON is always written as JSON.
        RawValue::from_string(value.to_string()).map_or_else(|_| Self(RawValue::NULL.to_owned()), Self)
    }
}

impl PartialEq for JsonText {
    fn eq(&self, other: &Self) -> bool {
        let (one, other) = (self.as_str(), other.as_str());
        one == other
            || matches!((Node::parse(one), Node::parse(other)), (Ok(one), Ok(other)) if one.is_same(&other))
    }
}

impl Eq for JsonText {}

impl std::fmt::Display for JsonText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> JsonText {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_text_keeps_every_digit_and_is_equal_as_jsonb_is() {
        for text in ["12345678901234567890123", "1e400", "1.10", r#"{"a": [1, "é"]}"#] {
            assert_eq!(written(text).as_str(), text);
        }
        for (one, other) in [
            ("1.10", "11e-1"),
            (r#"{"a":1,"b":[2,{}]}"#, r#"{ "b": [2.0, {}], "a": 5, "a": 1 }"#),
            (r#""é""#, r#""\u00e9""#),
        ] {
            assert_eq!(written(one), written(other));
        }
        for (one, other) in [
            ("12345678901234567890123", "12345678901234567890124"),
            ("1e400", "2e400"),
            ("[1,2]", "[2,1]"),
            (r#"{"a":null}"#, "{}"),
            ("{}", r#"{"a":null}"#),
            ("0", "false"),
        ] {
            assert_ne!(written(one), written(other), "{one} {other}");
        }
        assert!(written("1e400").value().is_err(), "no 64-bit number is that large");
        assert!(written("{ }").is_empty_object() && !written("[]").is_empty_object());
    }
}
