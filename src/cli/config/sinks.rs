//! `[sinks.<kind>]`: connections to brokers, other databases and folders. Each kind of sink reads its own
//! keys. The field `connection` of a subscription selects one of `[sinks.<kind>.connections.<name>]`.

use figment::value::Value;
use secrecy::SecretString;

use super::{
    Mistake, Sources,
    read::{Reader, Secrecy, plain},
};
use crate::sink::{Connection, Kind, Settings, UNNAMED, settings::Section};

/// One section inside `[sinks]`.
struct SinkSection<'a> {
    reader: &'a mut Reader,
    sources: &'a Sources,
    section: String,
}

impl Section for SinkSection<'_> {
    fn is_set(&self) -> bool {
        let keys = self.reader.at(&self.section).and_then(Value::as_dict);
        keys.is_some_and(|keys| keys.keys().any(|key| key != "connections"))
    }

    fn value(&self, key: &str) -> Option<serde_json::Value> {
        self.reader.at(&format!("{}.{key}", self.section)).map(plain)
    }

    fn resolve(&self, text: &str) -> Result<SecretString, String> {
        self.sources.resolve(text)
    }

    fn refuse(&mut self, key: &str, secrecy: Secrecy, problem: String) {
        self.reader.refuse_at(&format!("{}.{key}", self.section), secrecy, problem);
    }
}

/// Reads every connection of every kind, in the order of the manual.
pub(super) fn read(reader: &mut Reader, sources: &Sources, kinds: &[Kind]) -> Vec<Connection> {
    let mut connections = Vec::new();
    for kind in kinds {
        let section = Connection::section(kind.name, UNNAMED);
        let _ = keys_below(reader, &section);
        // Read even an absent section: reading tells which keys it has.
        connections.extend(connection(reader, sources, kind, UNNAMED.to_owned()));
        let others = format!("{section}.connections");
        for name in keys_below(reader, &others) {
            let path = format!("{others}.{name}");
            if name == UNNAMED {
                reader.refuse_unknown(
                    &path,
                    format!("the connection {UNNAMED} is [{section}] itself; move the keys there"),
                );
            } else {
                let _ = keys_below(reader, &path);
                connections.extend(connection(reader, sources, kind, name));
            }
        }
    }
    for unknown in keys_below(reader, "sinks")
        .iter()
        .filter(|kind| !kinds.iter().any(|known| known.name == kind.as_str()))
    {
        let problem = match unknown.as_str() {
            kind if crate::sinks::OPTIONAL.contains(&kind) => {
                format!("this sink needs a build with the feature {kind}")
            }
            "webhook" => "webhooks are configured in [egress]; remove this section".to_owned(),
            "function" | "handler" | "stdout" | "live" => {
                "this sink has no configuration; remove this section".to_owned()
            }
            _ => {
                let known: Vec<_> = kinds.iter().map(|kind| kind.name).collect();
                format!("unknown sink; known sinks are {}", known.join(", "))
            }
        };
        reader.refuse_unknown(&format!("sinks.{unknown}"), problem);
    }
    connections
}

/// The keys of a section. Records a mistake if it is not a section.
fn keys_below(reader: &mut Reader, section: &str) -> Vec<String> {
    match reader.at(section) {
        None => Vec::new(),
        Some(Value::Dict(_, keys)) => keys.keys().cloned().collect(),
        Some(_) => {
            // `sinks` itself is checked with the other sections.
            if section != "sinks" {
                reader.refuse_unknown(section, format!("must be a section: write [{section}] with its keys"));
            }
            Vec::new()
        }
    }
}

fn connection(reader: &mut Reader, sources: &Sources, kind: &Kind, name: String) -> Option<Connection> {
    let section = Connection::section(kind.name, &name);
    let mut written = SinkSection { reader, sources, section: section.clone() };
    let is_set = written.is_set();
    let mut settings = Settings::new(&mut written);
    let connection = kind.read(&mut settings, &name);
    let (keys, good) = settings.finish();
    if name == UNNAMED {
        reader.know(keys.iter().map(|key| format!("{section}.{key}")));
    } else if name.len() > 63
        || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    {
        reader.refuse_unknown(
            &section,
            "the name of a connection must have 1 to 63 letters, digits, _ and -".to_owned(),
        );
    }
    let unknown: Vec<String> = reader
        .at(&section)
        .and_then(Value::as_dict)
        .map(|written| {
            written
                .keys()
                .filter(|key| !keys.contains(&key.as_str()) && *key != "connections")
                .cloned()
                .collect()
        })
        .unwrap_or_default();
    for key in unknown {
        reader.refuse_unknown(
            &format!("{section}.{key}"),
            format!("unknown key; [{section}] has {}", keys.join(", ")),
        );
    }
    connection.filter(|_| is_set && good)
}

impl Mistake {
    pub(super) fn of_key(key: &str, origin: Option<String>, problem: String) -> Self {
        Self { key: key.to_owned(), value: None, origin, problem }
    }
}
