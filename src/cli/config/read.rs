//! Reads settings one by one, so that all mistakes are found at once, each with its origin.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use figment::{
    Error, Figment, Provider as _,
    providers::{Format, Toml},
    value::{Dict, Value},
};

use super::{
    Mistake, Sources,
    environment::{Setting, settings_of_environment},
};
pub(super) use crate::sink::settings::Secrecy;

/// Longest value shown in a mistake, in characters.
const LONGEST_SHOWN: usize = 80;

/// All settings as written, the mistakes found so far, and the keys read so far.
pub(super) struct Reader {
    figment: Figment,
    settings: Dict,
    mistakes: Vec<Mistake>,
    known: Vec<(String, Secrecy)>,
    /// The source whose settings these are: its name, and what is written in its table.
    source: Option<(String, Dict)>,
}

impl fmt::Debug for Reader {
    /// Keys only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader")
            .field("known", &self.known.len())
            .field("mistakes", &self.mistakes.len())
            .finish_non_exhaustive()
    }
}

impl Reader {
    /// Merges file, environment and flags; later sources override earlier ones.
    pub(super) fn new(sources: &Sources) -> Self {
        let mut figment = Figment::new();
        let mut mistakes = Vec::new();
        match sources.existing_file() {
            Ok(None) => {}
            Ok(Some(path)) => match Toml::file_exact(&path).data() {
                Ok(_) => figment = figment.merge(Toml::file_exact(&path)),
                Err(error) => mistakes.push(Mistake::of_file(&path, &one_line(&error))),
            },
            Err(mistake) => mistakes.push(mistake),
        }
        for setting in settings_of_environment(sources, &mut mistakes) {
            figment = figment.merge(setting);
        }
        for (key, flag, value) in &sources.flags {
            figment = figment.merge(Setting::new(flag, key, value));
        }
        let settings = merged(&figment);
        Self { figment, settings, mistakes, known: Vec::new(), source: None }
    }

    /// Takes `[[source]]` out of the settings; none if it is not written.
    pub(super) fn take_tables(&mut self) -> Option<Value> {
        self.settings.remove("source")
    }

    /// Whether these are the settings of one of several sources.
    pub(super) fn is_of_source(&self) -> bool {
        self.source.is_some()
    }

    /// Takes a section out of the settings, whose keys were refused.
    pub(super) fn forget(&mut self, section: &str) {
        self.settings.remove(section);
    }

    /// A reader of one source: what is written in its table counts before what is written for all.
    pub(super) fn of_source(&self, name: &str, table: &Dict) -> Self {
        let mut settings = self.settings.clone();
        for (section, value) in table {
            lay_over(&mut settings, section, value);
        }
        let (figment, source) = (self.figment.clone(), Some((name.to_owned(), table.clone())));
        Self { figment, settings, mistakes: Vec::new(), known: Vec::new(), source }
    }

    /// Records a mistake in what was taken out of the settings. Its values are not shown.
    pub(super) fn refuse_taken(&mut self, key: &str, value: &Value, problem: String) {
        let mistake = Mistake::of_key(key, self.origin(key, value), problem);
        self.mistakes.push(mistake);
    }

    /// The name of a key for people: of one that the table of the source has, or of an address, with it.
    fn full_key(&self, path: &str) -> String {
        let Some((name, table)) = &self.source else { return path.to_owned() };
        let mut keys = path.split('.');
        let first = keys.next().and_then(|section| table.get(section));
        let is_own = keys.try_fold(first, |value, key| Some(value?.as_dict()?.get(key))).flatten().is_some();
        if is_own || path.starts_with("database.") {
            format!("source.{name}.{path}")
        } else {
            path.to_owned()
        }
    }

    /// Reads a key whose value may be shown; none if it is not set or invalid.
    pub(super) fn read<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&serde_json::Value) -> Result<T, String>,
    ) -> Option<T> {
        self.take(key, Secrecy::Open, parse)
    }

    /// Reads a key whose value is never shown. `parse` must not put it into its error.
    pub(super) fn read_secret<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&serde_json::Value) -> Result<T, String>,
    ) -> Option<T> {
        self.take(key, Secrecy::Secret, parse)
    }

    /// Whether a key is set.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.at(key).is_some()
    }

    /// The value at a path of keys.
    pub(super) fn at(&self, path: &str) -> Option<&Value> {
        let mut keys = path.split('.');
        let first = self.settings.get(keys.next()?)?;
        keys.try_fold(first, |value, key| value.as_dict()?.get(key))
    }

    /// Variables that would be settings if their underscores were doubled. Those of secrets may be meant for
    /// a reference, such as `env:PGOUTBOX_HTTP_TOKEN`.
    pub(super) fn misnamed(&self, sources: &Sources) -> Vec<(String, String)> {
        let open = self.known.iter().filter(|(_, secrecy)| *secrecy != Secrecy::Secret);
        let named = |key: &str, between: &str| {
            format!("PGOUTBOX{between}{}", key.to_uppercase().replace('.', between))
        };
        open.map(|(key, _)| (named(key, "_"), named(key, "__")))
            .filter(|(name, _)| sources.variable(name).is_some())
            .collect()
    }

    /// Files that settings refer to: `file:/path`, and keys that end in `_file`.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        fn add(key: &str, value: &Value, files: &mut Vec<PathBuf>) {
            match value {
                Value::Dict(_, keys) => keys.iter().for_each(|(key, value)| add(key, value, files)),
                Value::String(_, text) => {
                    let named = key.ends_with("_file").then_some(text.as_str());
                    files.extend(text.strip_prefix("file:").or(named).map(PathBuf::from));
                }
                _ => {}
            }
        }
        let mut files = Vec::new();
        self.settings.iter().for_each(|(key, value)| add(key, value, &mut files));
        files
    }

    /// Reads a key at a path, without adding it to the known keys.
    pub(super) fn take_at<T>(
        &mut self,
        path: &str,
        secrecy: Secrecy,
        parse: impl FnOnce(&serde_json::Value) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&plain(self.at(path)?)) {
            Ok(value) => Some(value),
            Err(problem) => {
                let mistake = self.mistake(path, secrecy, problem);
                self.mistakes.push(mistake);
                None
            }
        }
    }

    /// Adds keys to the known keys, which the manual must contain.
    pub(super) fn know(&mut self, keys: impl IntoIterator<Item = String>) {
        self.known.extend(keys.into_iter().map(|key| (key, Secrecy::Secret)));
    }

    /// Records a mistake at a path.
    pub(super) fn refuse_at(&mut self, path: &str, secrecy: Secrecy, problem: String) {
        let mistake = self.mistake(path, secrecy, problem);
        self.mistakes.push(mistake);
    }

    /// Records a mistake at an unknown path. The value may be a secret and is not shown.
    pub(super) fn refuse_unknown(&mut self, path: &str, problem: String) {
        let origin = self.at(path).and_then(|value| self.origin(path, value));
        let key = self.full_key(path);
        self.mistakes.push(Mistake::of_key(&key, origin, problem));
    }

    /// Records a mistake in a key that was read.
    pub(super) fn refuse(&mut self, key: &'static str, problem: impl Into<String>) {
        let secrecy = self
            .known
            .iter()
            .find(|(known, _)| *known == key)
            .map_or(Secrecy::Secret, |(_, secrecy)| *secrecy);
        let mistake = self.mistake(key, secrecy, problem.into());
        self.mistakes.push(mistake);
    }

    /// The known keys in the order of reading, and all mistakes, including unknown keys.
    pub(super) fn finish(mut self) -> (Vec<String>, Vec<Mistake>) {
        let mut unknown = Vec::new();
        // Keys of [sinks] were checked when they were read: each kind has its own.
        for (section, value) in
            self.settings.iter().filter(|(section, value)| *section != "sinks" || value.as_dict().is_none())
        {
            if self.known_below(section).next().is_some() {
                self.unknown_below(section, value, &mut unknown);
                continue;
            }
            let problem = format!("unknown section; known sections are {}", self.sections().join(", "));
            unknown.push((section.clone(), value, problem));
        }
        let unknown: Vec<_> = unknown
            .into_iter()
            // The value of an unknown key may be a secret.
            .map(|(key, value, problem)| {
                Mistake::of_key(&self.full_key(&key), self.origin(&key, value), problem)
            })
            .collect();
        self.mistakes.extend(unknown);
        (self.known.into_iter().map(|(key, _)| key).collect(), self.mistakes)
    }

    /// The known keys of a section, without its name.
    fn known_below<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        self.known.iter().filter_map(move |(key, _)| key.strip_prefix(section)?.strip_prefix('.'))
    }

    /// Collects the unknown keys of a section and of the sections within it.
    fn unknown_below<'a>(
        &self,
        section: &str,
        value: &'a Value,
        unknown: &mut Vec<(String, &'a Value, String)>,
    ) {
        let Value::Dict(_, keys) = value else {
            let problem = format!("must be a section: write [{section}] with its keys");
            return unknown.push((section.to_owned(), value, problem));
        };
        for (key, value) in keys {
            let path = format!("{section}.{key}");
            if self.known_below(section).any(|known| known == key) {
                continue;
            }
            if self.known_below(&path).next().is_some() {
                self.unknown_below(&path, value, unknown);
                continue;
            }
            let known: Vec<_> = self.known_below(section).collect();
            unknown.push((path, value, format!("unknown key; [{section}] has {}", known.join(", "))));
        }
    }

    fn take<T>(
        &mut self,
        key: &'static str,
        secrecy: Secrecy,
        parse: impl FnOnce(&serde_json::Value) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push((key.to_owned(), secrecy));
        self.take_at(key, secrecy, parse)
    }

    fn mistake(&self, key: &str, secrecy: Secrecy, problem: String) -> Mistake {
        let value = self.at(key);
        Mistake {
            key: self.full_key(key),
            value: value
                .map(|value| if secrecy == Secrecy::Secret { "[redacted]".to_owned() } else { shown(value) }),
            origin: value.and_then(|value| self.origin(key, value)),
            problem,
        }
    }

    fn origin(&self, key: &str, value: &Value) -> Option<String> {
        // A section has the origin of its first key.
        let value =
            std::iter::successors(Some(value), |value| value.as_dict().and_then(|keys| keys.values().next()))
                .last()?;
        let metadata = self.figment.get_metadata(value.tag()).or_else(|| self.figment.find_metadata(key))?;
        Some(
            metadata
                .source
                .as_ref()
                .and_then(figment::Source::file_path)
                .map_or_else(|| metadata.name.to_string(), |path| path.display().to_string()),
        )
    }

    fn sections(&self) -> Vec<&str> {
        let mut sections: Vec<_> = self
            .known
            .iter()
            .filter_map(|(key, _)| key.split_once('.'))
            .map(|(section, _)| section)
            .collect();
        sections.dedup();
        sections
    }
}

/// Lays a value over what is there: of sections each key by itself, of other values the whole.
fn lay_over(settings: &mut Dict, key: &str, value: &Value) {
    match (settings.get_mut(key), value) {
        (Some(Value::Dict(_, below)), Value::Dict(_, above)) => {
            above.iter().for_each(|(key, value)| lay_over(below, key, value));
        }
        _ => {
            settings.insert(key.to_owned(), value.clone());
        }
    }
}

/// The merged settings with the tags of their origin, which `extract` would drop.
fn merged(figment: &Figment) -> Dict {
    figment
        .extract::<Dict>()
        .unwrap_or_default()
        .into_keys()
        .filter_map(|section| figment.find_value(&section).ok().map(|value| (section, value)))
        .collect()
}

impl Mistake {
    pub(super) fn of_file(path: &Path, problem: &str) -> Self {
        Self { key: path.display().to_string(), value: None, origin: None, problem: problem.to_owned() }
    }
}

/// The value without its tag.
pub(super) fn plain(value: &Value) -> serde_json::Value {
    // No key accepts a number that JSON cannot hold.
    serde_json::to_value(value).unwrap_or(serde_json::Value::Null)
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::Char(_, value) => format!("{value:?}"),
        Value::String(_, value) => format!("{value:?}"),
        Value::Bool(_, value) => value.to_string(),
        Value::Num(_, number) => number
            .to_i128()
            .map(|number| number.to_string())
            .or_else(|| number.to_u128().map(|number| number.to_string()))
            .or_else(|| number.to_f64().map(|number| number.to_string()))
            .unwrap_or_default(),
        Value::Empty(..) => "nothing".to_owned(),
        Value::Dict(..) => "a section".to_owned(),
        Value::Array(_, items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(", ")),
    };
    if text.chars().count() > LONGEST_SHOWN {
        text.chars().take(LONGEST_SHOWN).chain(['…']).collect()
    } else {
        text
    }
}

fn one_line(error: &Error) -> String {
    // The parser shows the line of the error, which may contain a secret.
    error
        .kind
        .to_string()
        .lines()
        .filter(|line| !line.contains('|'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}
