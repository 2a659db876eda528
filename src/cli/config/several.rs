//! `[[source]]`: several databases that one process serves, each with what differs from the settings for all.

use std::collections::BTreeSet;

use figment::value::{Dict, Value};

use super::{Config, Error, Sources, read::Reader};
use crate::sink::Kind;

/// Sections that the table of a source may have.
const SECTIONS: [&str; 6] = ["database", "relay", "retention", "egress", "secrets", "sinks"];
/// Most sources of one process.
const MOST: usize = 100;
/// Longest name of a source, in characters.
const LONGEST_NAME: usize = 32;
/// Longest name of a relay, in characters.
const LONGEST_RELAY: usize = 63;

/// Several databases, in the order of the file.
#[derive(Debug, Clone)]
pub struct Several {
    /// What is written for all. Its `relay.permits` are those of all together; it has no address.
    pub common: Config,
    /// Each database.
    pub each: Vec<Named>,
}

/// One of several databases.
#[derive(Debug, Clone)]
pub struct Named {
    /// Name of the source, unique in the configuration.
    pub name: String,
    /// Its settings: those for all, and over them what its table says.
    pub config: Config,
}

impl Several {
    /// Reads and checks all settings; none if the configuration has no `[[source]]`.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(sources: &Sources, kinds: &[Kind]) -> Result<Option<Self>, Error> {
        let mut reader = Reader::new(sources);
        let Some(tables) = reader.take_tables() else { return Ok(None) };
        let written = tables_of(&mut reader, &tables);
        refuse_mixed(&mut reader);
        let mut mistakes = Vec::new();
        let mut each = Vec::new();
        for (name, table) in written {
            let mut own = reader.of_source(&name, &table);
            let mut config = Config::read_from(&mut own, sources, kinds, true);
            if table.get("relay").and_then(Value::as_dict).is_none_or(|keys| !keys.contains_key("name")) {
                config.relay.name = relay_name(&config.relay.name, &name);
            }
            mistakes.extend(own.finish().1);
            each.push(Named { name, config });
        }
        let common = Config::read_from(&mut reader, sources, kinds, false);
        let mut found = reader.finish().1;
        // What is wrong with the settings for all is wrong in each.
        for mistake in mistakes {
            if !found.contains(&mistake) {
                found.push(mistake);
            }
        }
        if found.is_empty() { Ok(Some(Self { common, each })) } else { Err(Error { mistakes: found }) }
    }

    /// The settings of the source of this name; without a name those of the only one.
    ///
    /// # Errors
    /// When there is none of this name, or several and none was named.
    pub fn choose(mut self, name: Option<&str>) -> Result<Config, Error> {
        let all: Vec<&str> = self.each.iter().map(|one| one.name.as_str()).collect();
        let all = all.join(", ");
        let found = match name {
            Some(name) => self.each.iter().position(|one| one.name == name),
            None => (self.each.len() == 1).then_some(0),
        };
        match (found, name) {
            (Some(at), _) => Ok(self.each.swap_remove(at).config),
            (None, Some(name)) => {
                Err(Error::of_choice(format!("there is no source {name:?}; the configuration has {all}")))
            }
            (None, None) => Err(Error::of_choice(format!(
                "the configuration has several sources; choose one with --source NAME: {all}"
            ))),
        }
    }
}

/// The tables that can be read, by name.
fn tables_of(reader: &mut Reader, tables: &Value) -> Vec<(String, Dict)> {
    let refuse = |reader: &mut Reader, value: &Value, problem: &str| {
        reader.refuse_taken("source", value, problem.to_owned());
    };
    let Value::Array(_, items) = tables else {
        refuse(
            reader,
            tables,
            "must be a list of tables: write [[source]], with its name and [source.database]",
        );
        return Vec::new();
    };
    if items.is_empty() || items.len() > MOST {
        refuse(reader, tables, &format!("must be 1 to {MOST} tables"));
    }
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (number, item) in items.iter().enumerate() {
        let place = format!("source {}", number + 1);
        let Value::Dict(_, table) = item else {
            refuse(reader, item, "must be a table: write [[source]]");
            continue;
        };
        let mut table = table.clone();
        let name = match table.remove("name") {
            Some(Value::String(_, name)) if is_name(&name) => name,
            Some(other) => {
                let problem = format!("must be 1 to {LONGEST_NAME} letters, digits, _ and -");
                reader.refuse_taken(&format!("{place}.name"), &other, problem);
                continue;
            }
            None => {
                reader.refuse_taken(&format!("{place}.name"), item, "is not set".to_owned());
                continue;
            }
        };
        if !names.insert(name.clone()) {
            reader.refuse_taken(&format!("source.{name}"), item, "another source has this name".to_owned());
            continue;
        }
        let unknown: Vec<String> =
            table.keys().filter(|key| !SECTIONS.contains(&key.as_str())).cloned().collect();
        for key in unknown {
            if let Some(value) = table.remove(&key) {
                let problem = format!("is not of one source; [[source]] has name, {}", SECTIONS.join(", "));
                reader.refuse_taken(&format!("source.{name}.{key}"), &value, problem);
            }
        }
        found.push((name, table));
    }
    found
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
}

/// Refuses what is of one database beside `[[source]]`.
fn refuse_mixed(reader: &mut Reader) {
    for (section, problem) in [
        (
            "database",
            "cannot be beside [[source]]: each source has its own [source.database]; remove one form",
        ),
        ("realtime", "cannot be beside [[source]]: a gateway serves the live clients of one database"),
    ] {
        let keys = reader.at(section).and_then(Value::as_dict).map(|keys| keys.keys().cloned().collect());
        let keys: Vec<String> = keys.unwrap_or_default();
        for key in keys {
            reader.refuse_unknown(&format!("{section}.{key}"), problem.to_owned());
        }
        reader.forget(section);
    }
}

/// The name of a relay of one source: that of all, with the name of the source.
fn relay_name(common: &str, source: &str) -> String {
    let room = LONGEST_RELAY - 1 - source.len();
    let kept = &common[common.len().saturating_sub(room)..];
    format!("{kept}:{source}")
}

#[cfg(test)]
mod tests {
    use super::super::tests::{URL, load, mistakes, sources};
    use super::*;
    use crate::sinks::CONFIGURED;

    const TWO: &str = "
[relay]
permits = 100
lease = '30s'
[[source]]
name = 'shop'
[source.database]
url = 'postgres://relay:hunter2@db.internal/shop'
[[source]]
name = 'billing'
[source.database]
url = 'env:BILLING'
pool_size = 2
[source.relay]
permits = 7
name = 'bills'
";
    const BILLING: (&str, &str) = ("BILLING", "postgres://relay@db.internal/billing");

    fn several(file: &str, environment: &[(&str, &str)]) -> Several {
        let (sources, _kept) = sources(file, environment);
        Several::load(&sources, CONFIGURED).unwrap_or_else(|error| panic!("{error}")).unwrap()
    }

    #[test]
    fn a_source_has_what_is_written_for_all_and_over_it_its_own() {
        let Several { common, each } = several(TWO, &[BILLING, ("PGOUTBOX__RELAY__NAME", "host")]);
        assert_eq!(common.relay.permits, 100);
        let [shop, billing] = &each[..] else { panic!("{each:?}") };
        assert_eq!((shop.name.as_str(), billing.name.as_str()), ("shop", "billing"));
        assert_eq!(shop.config.servers().unwrap().last().get_database(), Some("shop"));
        assert_eq!(billing.config.servers().unwrap().last().get_database(), Some("billing"));
        assert_eq!((shop.config.relay.permits, billing.config.relay.permits), (100, 7));
        assert_eq!(billing.config.relay.permits_per_subscription, 7);
        assert_eq!((shop.config.database.pool_size, billing.config.database.pool_size), (4, 2));
        assert_eq!(shop.config.relay.lease, billing.config.relay.lease);
        assert_eq!(
            (shop.config.relay.name.as_str(), billing.config.relay.name.as_str()),
            ("host:shop", "bills")
        );
        assert!(!format!("{each:?}").contains("hunter2"));
    }

    #[test]
    fn the_name_of_a_relay_stays_within_its_limit() {
        let name = relay_name(&"h".repeat(63), &"s".repeat(32));
        assert_eq!((name.len(), &name[30..33]), (63, ":ss"));
    }

    #[test]
    fn both_forms_at_once_are_refused_and_each_key_is_named() {
        for (name, value) in [URL, ("PGOUTBOX__DATABASE__POOL_SIZE", "3")] {
            let found = mistakes(TWO, &[BILLING, (name, value)]);
            assert!(found.len() == 1 && found[0].contains("cannot be beside [[source]]"), "{found:#?}");
            assert!(found[0].starts_with("database.") && found[0].contains(name), "{found:#?}");
            assert!(!found[0].contains("hunter2"));
        }
        let found = mistakes(&format!("[realtime]\nenabled = true\n{TWO}"), &[BILLING]);
        assert!(found.len() == 1 && found[0].starts_with("realtime.enabled (FILE): cannot be"), "{found:#?}");
    }

    #[test]
    fn mistakes_name_the_source_and_those_for_all_are_reported_once() {
        let file = "[relay]\npermits = 0\n[[source]]\nname = 'a'\n[source.database]\nurl = 'postgres://h/a'\n\
                    [source.relay]\nleases = 'x'\nlease = '1s'\n[[source]]\nname = 'b'\n[source.http]\nlisten = 'off'\n\
                    [[source]]\nname = 'a'\n[[source]]\nname = 'a b'\n[[source]]\n";
        let found = mistakes(file, &[("PGOUTBOX__SOURCE__A__RELAY__LEASE", "5s")]);
        for expected in [
            "relay.permits = 0 (FILE): must be",
            "source.a.relay.lease = \"1s\" (FILE): must be from 3s",
            "source.a.relay.leases (FILE): unknown key; [relay] has name",
            "source.b.database.url: is not set; write url in [source.database]",
            "source.b.http (FILE): is not of one source; [[source]] has name, database, relay",
            "source.a (FILE): another source has this name",
            "source 4.name (FILE): must be 1 to 32 letters",
            "source 5.name (FILE): is not set",
            "source.a.relay.lease (PGOUTBOX__SOURCE__A__RELAY__LEASE): is no setting",
        ] {
            assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "{expected}\n{found:#?}");
        }
        assert_eq!(found.len(), 9, "{found:#?}");
        let found = mistakes("[source]\nname = 'a'", &[]);
        assert!(found.len() == 1 && found[0].contains("write [[source]]"), "{found:#?}");
    }

    #[test]
    fn of_several_sources_one_must_be_chosen_and_of_one_none() {
        let chosen = |file: &str, name: Option<&str>| {
            let (mut sources, _kept) = sources(file, &[BILLING]);
            sources.source = name.map(ToOwned::to_owned);
            Config::load(&sources, CONFIGURED)
        };
        assert_eq!(chosen(TWO, Some("billing")).unwrap().relay.permits, 7);
        let error = chosen(TWO, None).unwrap_err();
        assert!(
            error.is_of_choice() && error.to_string().contains("--source NAME: shop, billing"),
            "{error}"
        );
        let error = chosen(TWO, Some("other")).unwrap_err();
        assert!(error.is_of_choice() && error.to_string().contains("no source \"other\""), "{error}");
        assert!(!chosen("[relay]\npermits = 0", None).unwrap_err().is_of_choice());
        let one = &TWO[..TWO.rfind("[[source]]").unwrap()];
        assert_eq!(load(one, &[]).relay.permits, 100);
        let error = chosen("[database]\nurl = 'postgres://h/d'", Some("shop")).unwrap_err();
        assert!(error.is_of_choice() && error.to_string().contains("no [[source]]"), "{error}");
    }
}
