//! How gateways are fed: `realtime.backplane`, and the keys of `[realtime.nats]`.

use std::time::Duration;

use serde_json::Value;

use super::{read::Reader, sources::Sources};
use crate::{
    live::Backplane,
    sink::{
        UNNAMED,
        settings::{duration, number, text},
    },
};

/// The keys of `[realtime.nats]`. They are read in every build.
#[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "what uses them needs the feature"))]
struct Keys {
    connection: String,
    stream: Option<String>,
    subject: Option<String>,
    max_age: Option<Duration>,
    max_bytes: Option<u32>,
    replicas: Option<u32>,
}

/// Reads the keys. `[sinks.nats]` has the connection.
pub(super) fn read(reader: &mut Reader, sources: &Sources) -> Backplane {
    let is_on = reader.read("realtime.backplane", |value: &Value| match value.as_str() {
        Some("off") => Ok(false),
        Some("nats") => Ok(true),
        _ => Err("must be \"off\" or \"nats\"".to_owned()),
    });
    let word = |allowed: &'static str| {
        move |value: &Value| {
            let word = text(value)?;
            let fits = word.len() <= 128
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || allowed.as_bytes().contains(&byte))
                && word.split('.').all(|part| !part.is_empty());
            fits.then_some(word).ok_or_else(|| format!("must be at most 128 letters, digits and {allowed}"))
        }
    };
    let keys = Keys {
        connection: reader.read("realtime.nats.connection", text).unwrap_or_else(|| UNNAMED.to_owned()),
        stream: reader.read("realtime.nats.stream", word("_-")),
        subject: reader.read("realtime.nats.subject", word("_-.")),
        max_age: reader.read(
            "realtime.nats.max_age",
            duration(Duration::from_secs(60)..=Duration::from_secs(30 * 86_400)),
        ),
        max_bytes: reader.read("realtime.nats.max_bytes", number(16_777_216..=4_000_000_000)),
        replicas: reader.read("realtime.nats.replicas", number(1..=5)),
    };
    if is_on != Some(true) {
        return Backplane::Off;
    }
    nats(reader, sources, keys)
}

#[cfg(not(feature = "nats"))]
fn nats(reader: &mut Reader, _: &Sources, _: Keys) -> Backplane {
    reader.refuse("realtime.backplane", "needs a build with the feature nats");
    Backplane::Off
}

#[cfg(feature = "nats")]
fn nats(reader: &mut Reader, sources: &Sources, keys: Keys) -> Backplane {
    use crate::{
        live::backplane::Nats,
        sink::{Connection, Settings},
        sinks::nats::Config,
    };
    let section = Connection::section("nats", &keys.connection);
    if reader.at(&section).is_none() {
        reader.refuse(
            "realtime.backplane",
            format!("needs the connection of [{section}] (realtime.nats.connection)"),
        );
        return Backplane::Off;
    }
    let mut written = Written { reader, sources, section };
    // Its mistakes are found when the sinks are read.
    let Some(connection) = Config::read(&mut Settings::new(&mut written)) else { return Backplane::Off };
    let mut nats = Nats::new(connection);
    nats.stream = keys.stream.unwrap_or(nats.stream);
    nats.subject = keys.subject.unwrap_or(nats.subject);
    nats.max_age = keys.max_age.unwrap_or(nats.max_age);
    nats.max_bytes = keys.max_bytes.map_or(nats.max_bytes, u64::from);
    nats.replicas = keys.replicas.map_or(nats.replicas, |replicas| replicas as usize);
    Backplane::Nats(Box::new(nats))
}

/// A section that is read again.
#[cfg(feature = "nats")]
struct Written<'a> {
    reader: &'a Reader,
    sources: &'a Sources,
    section: String,
}

#[cfg(feature = "nats")]
impl crate::sink::settings::Section for Written<'_> {
    fn is_set(&self) -> bool {
        true
    }

    fn value(&self, key: &str) -> Option<Value> {
        self.reader.at(&format!("{}.{key}", self.section)).map(super::read::plain)
    }

    fn resolve(&self, text: &str) -> Result<secrecy::SecretString, String> {
        self.sources.resolve(text)
    }

    fn refuse(&mut self, _: &str, _: super::read::Secrecy, _: String) {}
}

#[cfg(all(test, feature = "nats"))]
mod tests {
    use super::{
        super::tests::{URL, load, mistakes},
        Backplane,
    };

    #[test]
    fn gateways_are_fed_by_a_connection_of_the_nats_sink() {
        let file = "[realtime]\nbackplane = 'nats'\n[realtime.nats]\nconnection = 'far'\nmax_age = '2h'\n\
                    [sinks.nats.connections.far]\nservers = ['tls://far:4222']\ntoken = 'env:SECRET'";
        let variable = ("PGOUTBOX__REALTIME__NATS__STREAM", "orders");
        let config = load(file, &[URL, ("SECRET", "hunter2"), variable]);
        let Backplane::Nats(nats) = config.realtime.backplane else { panic!("it is on") };
        assert_eq!(nats.connection.servers, ["tls://far:4222"]);
        assert!(nats.connection.token.is_some());
        assert_eq!(
            (&*nats.stream, &*nats.subject, nats.max_age.as_secs()),
            ("orders", "pgoutbox.live", 7_200)
        );
        assert!(matches!(load("", &[URL]).realtime.backplane, Backplane::Off));
    }

    #[test]
    fn what_cannot_feed_gateways_is_named() {
        for (file, named) in [
            ("backplane = 'kafka'", "realtime.backplane = \"kafka\" (FILE): must be \"off\" or \"nats\""),
            (
                "backplane = 'nats'",
                "realtime.backplane = \"nats\" (FILE): needs the connection of [sinks.nats]",
            ),
            ("[realtime.nats]\nstream = 'a b'", "realtime.nats.stream = \"a b\" (FILE): must be at most 128"),
            (
                "[realtime.nats]\nsubject = 'a.>'",
                "realtime.nats.subject = \"a.>\" (FILE): must be at most 128",
            ),
            (
                "[realtime.nats]\nmax_age = '1s'",
                "realtime.nats.max_age = \"1s\" (FILE): must be from 1m to 30d",
            ),
            (
                "backplane = 'nats'\n[sinks.nats]\nservers = ['nats://user:hunter2@far:4222']",
                "sinks.nats.servers = [redacted] (FILE): must be addresses such as nats://HOST:PORT",
            ),
        ] {
            let found = mistakes(&format!("[realtime]\n{file}"), &[URL]);
            assert!(found.len() == 1 && found[0].contains(named), "{file}: {found:#?}");
        }
    }
}
