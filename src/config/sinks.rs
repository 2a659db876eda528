//! `[sinks.<kind>]`: how to reach brokers, other databases and folders. Each kind of sink reads its own keys; the field
//! `connection` of a subscription picks one of `[sinks.<kind>.connections.<name>]`.

use std::{fmt, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use figment::value::Value;
use secrecy::{ExposeSecret, SecretString};

use super::{
    Mistake, Sources,
    read::{Reader, Secrecy, duration, list, number, switch, text},
};
use crate::sinks::{CONNECTIONS, ErasedSink, Kind, OPTIONAL, Opener, UNNAMED};

/// One way to reach a system, checked; nothing is connected to before the first delivery.
#[derive(Clone)]
pub struct Connection {
    /// The kind of sink.
    pub kind: &'static str,
    /// Its name among those of its kind; `default` for `[sinks.<kind>]` itself.
    pub name: String,
    opener: Opener,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("kind", &self.kind).field("name", &self.name).finish_non_exhaustive()
    }
}

impl Connection {
    /// Makes the sink.
    pub(crate) fn open(&self) -> Result<Arc<dyn ErasedSink>, String> {
        (self.opener)(&self.name)
    }

    /// Where it was written.
    pub(crate) fn section(&self) -> String {
        section(self.kind, &self.name)
    }
}

fn section(kind: &str, name: &str) -> String {
    if name == UNNAMED { format!("sinks.{kind}") } else { format!("sinks.{kind}.connections.{name}") }
}

/// The keys of one connection, read one by one. Every value may be a reference, `env:NAME` or `file:/path`.
#[derive(Debug)]
pub struct Settings<'a> {
    reader: &'a mut Reader,
    sources: &'a Sources,
    section: String,
    keys: Vec<&'static str>,
    good: bool,
}

impl Settings<'_> {
    /// Whether anything is written in this section: without it there is no such connection, and nothing is missing.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.reader.at(&self.section).and_then(Value::as_dict).is_some_and(|keys| keys.keys().any(|key| key != "connections"))
    }

    /// A text that may be shown.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let sources = self.sources;
        self.take(key, Secrecy::Open, |value| Ok(sources.resolve(&text(value)?)?.expose_secret().to_owned()))
    }

    /// A text that must never be shown.
    pub fn secret(&mut self, key: &'static str) -> Option<SecretString> {
        let sources = self.sources;
        self.take(key, Secrecy::Secret, |value| sources.resolve(&text(value)?))
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

    /// Several texts: an array, or a text separated by commas.
    pub fn list(&mut self, key: &'static str) -> Option<Vec<String>> {
        self.take(key, Secrecy::Open, list(|item| Ok::<_, String>(item.to_owned())))
    }

    /// Notes that a key which was read before is wrong or missing.
    pub fn refuse(&mut self, key: &'static str, problem: impl Into<String>) {
        self.good = false;
        let key = format!("{}.{key}", self.section);
        self.reader.refuse_at(&key, problem.into());
    }

    /// The same for a key without which there is no connection: refused where it was not written.
    pub fn require<T>(&mut self, key: &'static str, value: Option<T>) -> Option<T> {
        if value.is_none() && self.is_set() && self.reader.at(&format!("{}.{key}", self.section)).is_none() {
            self.refuse(key, "is not set, and this connection needs it");
        }
        value
    }

    fn take<T>(&mut self, key: &'static str, secrecy: Secrecy, parse: impl FnOnce(&Value) -> Result<T, String>) -> Option<T> {
        self.keys.push(key);
        let path = format!("{}.{key}", self.section);
        let value = self.reader.take_at(&path, secrecy, parse);
        self.good &= value.is_some() || self.reader.at(&path).is_none();
        value
    }
}

/// Reads every connection of every kind, in the order of the manual.
pub(super) fn read(reader: &mut Reader, sources: &Sources) -> Vec<Connection> {
    let mut connections = Vec::new();
    for kind in CONNECTIONS {
        let section = section(kind.name, UNNAMED);
        let _ = keys_below(reader, &section);
        // Also when nothing is written there: the keys it has are learned by reading them.
        connections.extend(connection(reader, sources, kind, UNNAMED.to_owned()));
        let others = format!("{section}.connections");
        for name in keys_below(reader, &others) {
            let path = format!("{others}.{name}");
            if name == UNNAMED {
                reader.refuse_unknown(&path, format!("the connection {UNNAMED} is [{section}] itself; write its keys there"));
            } else {
                let _ = keys_below(reader, &path);
                connections.extend(connection(reader, sources, kind, name));
            }
        }
    }
    for unknown in keys_below(reader, "sinks").iter().filter(|kind| !CONNECTIONS.iter().any(|known| known.name == kind.as_str())) {
        let problem = match unknown.as_str() {
            kind if OPTIONAL.contains(&kind) => format!("this program was built without it; it needs the feature {kind}"),
            "webhook" => "what webhooks may reach stands below [egress]; remove this section".to_owned(),
            "function" | "handler" | "stdout" => "this sink has nothing to configure; remove this section".to_owned(),
            _ => {
                let kinds: Vec<_> = CONNECTIONS.iter().map(|kind| kind.name).collect();
                format!("there is no such sink to configure; there are {}", kinds.join(", "))
            }
        };
        reader.refuse_unknown(&format!("sinks.{unknown}"), problem);
    }
    connections
}

/// What is written in a section. Something else in its place is a mistake.
fn keys_below(reader: &mut Reader, section: &str) -> Vec<String> {
    match reader.at(section) {
        None => Vec::new(),
        Some(Value::Dict(_, keys)) => keys.keys().cloned().collect(),
        Some(_) => {
            // `sinks` itself is looked at with the other sections.
            if section != "sinks" {
                reader.refuse_unknown(section, format!("is a section; write [{section}] and its keys below"));
            }
            Vec::new()
        }
    }
}

fn connection(reader: &mut Reader, sources: &Sources, kind: &Kind, name: String) -> Option<Connection> {
    let section = section(kind.name, &name);
    let mut settings = Settings { reader, sources, section: section.clone(), keys: Vec::new(), good: true };
    let opener = (kind.read)(&mut settings);
    let (is_set, good, keys) = (settings.is_set(), settings.good, settings.keys);
    if name == UNNAMED {
        reader.know(keys.iter().map(|key| format!("{section}.{key}")));
    } else if name.len() > 63 || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
        reader.refuse_unknown(&section, "the name of a connection has 1 to 63 letters, digits, _ and -".to_owned());
    }
    let unknown: Vec<String> = reader
        .at(&section)
        .and_then(Value::as_dict)
        .map(|written| written.keys().filter(|key| !keys.contains(&key.as_str()) && *key != "connections").cloned().collect())
        .unwrap_or_default();
    for key in unknown {
        reader.refuse_unknown(&format!("{section}.{key}"), format!("there is no such key; [{section}] has {}", keys.join(", ")));
    }
    (is_set && good).then_some(opener?).map(|opener| Connection { kind: kind.name, name, opener })
}

impl Mistake {
    pub(super) fn of_key(key: &str, origin: Option<String>, problem: String) -> Self {
        Self { key: key.to_owned(), value: None, origin, problem }
    }
}
