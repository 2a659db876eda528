//! Settings from environment variables and flags, one by one, each with its origin.

use figment::{
    Error, Metadata, Profile, Provider,
    value::{Dict, Map, Value},
};

use super::{Mistake, Sources};

/// Settings of `DATABASE_URL` and `PGOUTBOX__SECTION__KEY`, which overrides it. The underscore is doubled
/// because Kubernetes sets variables such as `PGOUTBOX_PORT` for a service of that name.
pub(super) fn settings_of_environment(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some(url) = sources.variable("DATABASE_URL").filter(|url| !url.is_empty()) {
        settings.push(Setting::new("DATABASE_URL", "database.url", &url));
    }
    let mut variables: Vec<_> = sources
        .environment
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value)))
        .filter(|(name, _)| name.starts_with("PGOUTBOX__"))
        .collect();
    variables.sort_unstable();
    for (name, value) in variables {
        let key = name["PGOUTBOX__".len()..].to_lowercase().replace("__", ".");
        let parts: Vec<_> = key.split('.').collect();
        let depth = if parts.contains(&"") { 0 } else { parts.len() };
        // sinks.<kind>.<key> has 3 parts, sinks.<kind>.connections.<name>.<key> has 5, http.jwt.<key> and
        // realtime.nats.<key> 3, any other key 2.
        let names_a_key = match parts[..] {
            ["sinks", ..] => matches!(depth, 3 | 5),
            ["http", "jwt", _] | ["realtime", "nats", _] => depth == 3,
            _ => depth == 2,
        };
        let problem = match (names_a_key, value.to_str()) {
            _ if parts[0] == "source" => {
                "is no setting: [[source]] is written in the file, where values may be \"env:NAME\""
            }
            (true, Some(value)) => {
                settings.push(Setting::new(name, &key, value));
                continue;
            }
            (true, None) => "is not UTF-8",
            _ => "does not name a key; write PGOUTBOX__SECTION__KEY, such as PGOUTBOX__RELAY__PERMITS",
        };
        mistakes.push(Mistake {
            key,
            value: None,
            origin: Some(name.to_owned()),
            problem: problem.to_owned(),
        });
    }
    settings
}

/// A setting from the environment or a flag. Its value stays text: a token of digits must not become a
/// number.
pub(super) struct Setting {
    origin: String,
    key: String,
    value: String,
}

impl Setting {
    pub(super) fn new(origin: &str, key: &str, value: &str) -> Self {
        Self { origin: origin.to_owned(), key: key.to_owned(), value: value.to_owned() }
    }
}

impl Provider for Setting {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> Result<Map<Profile, Dict>, Error> {
        let mut keys: Vec<&str> = self.key.split('.').collect();
        let section = keys.remove(0).to_owned();
        let value = keys.iter().rev().fold(Value::from(self.value.as_str()), |value, key| {
            Value::from(Dict::from([((*key).to_owned(), value)]))
        });
        Ok(Map::from([(Profile::Default, Dict::from([(section, value)]))]))
    }
}
