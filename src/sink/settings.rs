//! Reads and checks the keys of one section of a configuration. Knows no file format: the caller implements
//! [`Section`].

use std::{fmt, ops::RangeInclusive, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use crate::delivery::duration as durations;

/// Whether a value may be shown in an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Secrecy {
    /// The value may be shown.
    Open,
    /// The value must not be shown.
    Secret,
}

/// One section of a configuration, such as `[sinks.kafka]`.
pub trait Section {
    /// Whether the section has any key.
    fn is_set(&self) -> bool;

    /// The value of a key, if it is set.
    fn value(&self, key: &str) -> Option<Value>;

    /// The text that a reference (`env:NAME`, `file:/path`) refers to; other texts are returned unchanged.
    ///
    /// # Errors
    /// A message that names the reference.
    fn resolve(&self, text: &str) -> Result<SecretString, String>;

    /// Records a mistake in a key.
    fn refuse(&mut self, key: &str, secrecy: Secrecy, problem: String);
}

/// Reads the keys of one connection. Texts and secrets may be references, `env:NAME` or `file:/path`.
pub struct Settings<'a> {
    section: &'a mut dyn Section,
    keys: Vec<&'static str>,
    good: bool,
}

impl fmt::Debug for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("keys", &self.keys).field("good", &self.good).finish_non_exhaustive()
    }
}

impl<'a> Settings<'a> {
    /// A reader of this section.
    pub fn new(section: &'a mut dyn Section) -> Self {
        Self { section, keys: Vec::new(), good: true }
    }

    /// The keys that were read, and whether all were valid.
    #[must_use]
    pub fn finish(self) -> (Vec<&'static str>, bool) {
        (self.keys, self.good)
    }

    /// A text that may be shown.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.resolved(key, Secrecy::Open).map(|text| text.expose_secret().to_owned())
    }

    /// A text that must never be shown.
    pub fn secret(&mut self, key: &'static str) -> Option<SecretString> {
        self.resolved(key, Secrecy::Secret)
    }

    /// A file or folder.
    pub fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.take(key, Secrecy::Open, text).map(PathBuf::from)
    }

    /// `true` or `false`.
    pub fn switch(&mut self, key: &'static str) -> Option<bool> {
        self.take(key, Secrecy::Open, switch)
    }

    /// A whole number in a range.
    pub fn number(&mut self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        self.take(key, Secrecy::Open, number(range))
    }

    /// A duration in a range.
    pub fn duration(&mut self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Duration> {
        self.take(key, Secrecy::Open, duration(range))
    }

    /// A list of texts: an array, or one text separated by commas.
    pub fn list(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.take(key, Secrecy::Open, list(|item| Ok::<_, String>(item.to_owned())))
    }

    /// Marks a key as required: a section without it is refused.
    pub fn require<T>(&mut self, key: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && self.section.is_set() && self.section.value(key).is_none() {
            self.refuse(key, "is required for this connection");
        }
        value
    }

    /// Records a mistake in a key that was read.
    pub fn refuse(&mut self, key: &'static str, problem: impl Into<String>) {
        self.good = false;
        self.section.refuse(key, Secrecy::Secret, problem.into());
    }

    /// Records mistakes in several keys.
    pub fn refuse_all(&mut self, problems: impl IntoIterator<Item = (&'static str, String)>) {
        for (key, problem) in problems {
            self.refuse(key, problem);
        }
    }

    fn resolved(&mut self, key: &'static str, secrecy: Secrecy) -> Option<SecretString> {
        let written = self.take(key, secrecy, text)?;
        match self.section.resolve(&written) {
            Ok(secret) => Some(secret),
            Err(problem) => {
                self.good = false;
                self.section.refuse(key, secrecy, problem);
                None
            }
        }
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        secrecy: Secrecy,
        parse: impl FnOnce(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.keys.push(key);
        match parse(&self.section.value(key)?) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.good = false;
                self.section.refuse(key, secrecy, problem);
                None
            }
        }
    }
}

/// A text that is not empty.
pub(crate) fn text(value: &Value) -> Result<String, String> {
    let text = value.as_str().ok_or("must be a text in quotes")?;
    if text.is_empty() { Err("is empty; leave the key out instead".to_owned()) } else { Ok(text.to_owned()) }
}

/// `true` or `false`.
pub(crate) fn switch(value: &Value) -> Result<bool, String> {
    value.as_bool().or_else(|| value.as_str()?.parse().ok()).ok_or_else(|| "must be true or false".to_owned())
}

/// A whole number in a range.
pub(crate) fn number(range: RangeInclusive<u32>) -> impl Fn(&Value) -> Result<u32, String> {
    move |value| {
        value
            .as_i64()
            .or_else(|| value.as_str()?.parse().ok())
            .and_then(|number| u32::try_from(number).ok())
            .filter(|number| range.contains(number))
            .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }
}

/// A duration such as `10s`, in a range.
pub(crate) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Result<Duration, String> {
    move |value| {
        let text = value.as_str().ok_or("must be a number and a unit in quotes, such as \"10s\"")?;
        let length = durations::parse(text).map_err(|error| error.to_string())?;
        if range.contains(&length) {
            Ok(length)
        } else {
            Err(format!(
                "must be from {} to {}",
                durations::format(*range.start()),
                durations::format(*range.end())
            ))
        }
    }
}

/// A list of items: an array in a file, or separated by commas in the environment.
pub(crate) fn list<T, E: fmt::Display>(
    parse: impl Fn(&str) -> Result<T, E>,
) -> impl Fn(&Value) -> Result<Vec<T>, String> {
    move |value| {
        let items: Vec<String> = match value {
            Value::Array(items) => items
                .iter()
                .map(|item| item.as_str().map_or_else(|| item.to_string(), ToOwned::to_owned))
                .collect(),
            Value::String(text) => {
                text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
                return Err("must be an array".to_owned());
            }
        };
        items.iter().map(|item| parse(item).map_err(|error| format!("{item:?}: {error}"))).collect()
    }
}
