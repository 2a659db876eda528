//! The keys of each section and their limits, in the order of the manual.

use std::{path::PathBuf, time::Duration};

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use serde_json::Value;

use super::{
    Database, LogFormat, Telemetry,
    read::Reader,
    sources::{self, Sources},
};
use crate::{
    http, live,
    relay::{self, AttemptLog, Laggard},
    sink::{
        egress::Egress,
        servers::Servers,
        settings::{duration, list, number, switch, text},
    },
};

impl Database {
    pub(super) fn read(&mut self, reader: &mut Reader, sources: &Sources) {
        let url = |value: &Value| {
            let url = sources.resolve(&text(value)?)?;
            url.expose_secret().parse::<Servers>()?;
            Ok(url)
        };
        match reader.read_secret("database.url", url) {
            Some(url) => self.url = url,
            None if reader.is_set("database.url") => {}
            None if reader.is_of_source() => {
                reader.refuse("database.url", "is not set; write url in [source.database]");
            }
            None if sources.has_postgres_variables() => self.url = SecretString::from("postgres:///"),
            None => reader
                .refuse("database.url", "is not set; set DATABASE_URL, --database-url, or url in [database]"),
        }
        self.listen_url = reader.read_secret("database.listen_url", url);
        set(&mut self.pool_size, reader.read("database.pool_size", number(1..=100)));
        set(&mut self.function_pool_size, reader.read("database.function_pool_size", number(1..=100)));
        set(&mut self.pooler, reader.read("database.pooler", switch));
        set(&mut self.allow_superuser, reader.read("database.allow_superuser", switch));
    }
}

pub(super) fn relay(settings: &mut relay::Settings, reader: &mut Reader) {
    settings.name = reader.read("relay.name", label).unwrap_or_else(sources::host_name_and_process_id);
    set(&mut settings.environment, reader.read("relay.environment", label));
    set(&mut settings.permits, reader.read("relay.permits", number(1..=100_000)));
    let for_one = reader.read("relay.permits_per_subscription", number(1..=100_000));
    settings.permits_per_subscription =
        for_one.unwrap_or(settings.permits_per_subscription.min(settings.permits));
    if settings.permits_per_subscription > settings.permits {
        reader.refuse(
            "relay.permits_per_subscription",
            format!("must not be above relay.permits, which is {}", settings.permits),
        );
    }
    set(
        &mut settings.lease,
        reader.read("relay.lease", duration(Duration::from_secs(3)..=Duration::from_secs(600))),
    );
    set(&mut settings.drain, reader.read("relay.drain", duration(Duration::ZERO..=HOUR)));
    set(&mut settings.poll, reader.read("relay.poll", off_or(duration(Duration::from_millis(100)..=HOUR))));
    let longest = Duration::from_secs(30 * 86_400);
    let age = off_or(duration(Duration::from_secs(1)..=longest));
    set(&mut settings.backlog_alert, reader.read("relay.backlog_alert", age));
    let attempt_log =
        [("all", AttemptLog::All), ("failures", AttemptLog::Failures), ("off", AttemptLog::Off)];
    set(&mut settings.attempt_log, reader.read("relay.attempt_log", one_of(&attempt_log)));
}

pub(super) fn retention(settings: &mut relay::Retention, reader: &mut Reader) {
    let years = Duration::from_secs(3_650 * 86_400);
    for (key, period) in [
        ("retention.events", &mut settings.events),
        ("retention.attempts", &mut settings.attempts),
        ("retention.event_ids", &mut settings.event_ids),
        ("retention.dead_letters", &mut settings.dead_letters),
    ] {
        set(period, reader.read(key, off_or(duration(HOUR..=years))));
    }
    let laggard = [("keep", Laggard::Keep), ("dead-letter", Laggard::DeadLetter)];
    set(&mut settings.laggard, reader.read("retention.laggard", one_of(&laggard)));
}

pub(super) fn egress(settings: &mut Egress, reader: &mut Reader) {
    set(&mut settings.allow, reader.read("egress.allow", list(range)));
    set(&mut settings.allow_http, reader.read("egress.allow_http", switch));
    settings.proxy = reader.read_secret("egress.proxy", |value| {
        let url = url::Url::parse(&text(value)?).map_err(|error| format!("is not an address: {error}"))?;
        let usable = matches!(url.scheme(), "http" | "https") && url.has_host();
        usable
            .then_some(url)
            .ok_or_else(|| "must be an address such as http://proxy.internal:3128".to_owned())
    });
    settings.ca_file = reader.read("egress.ca_file", text).map(PathBuf::from);
    settings.deny_ports = reader
        .read("egress.deny_ports", list(|port| port.parse::<u16>().map_err(|_| "is not a port, 0 to 65535")));
}

pub(super) fn http(settings: &mut http::Settings, reader: &mut Reader, sources: &Sources) {
    let address = |value: &Value| {
        text(value)?.parse().map_err(|_| {
            "must be an address and a port, such as 127.0.0.1:7411 or [::1]:7411, or \"off\"".to_owned()
        })
    };
    set(&mut settings.listen, reader.read("http.listen", off_or(address)));
    set(&mut settings.probes, reader.read("http.probes", off_or(address)));
    settings.token = reader.read_secret("http.token", |value| {
        let token = sources.resolve(&text(value)?)?;
        let usable = !token.expose_secret().is_empty()
            && token.expose_secret().bytes().all(|byte| byte.is_ascii_graphic());
        usable.then_some(token).ok_or_else(|| "must be visible ASCII characters without spaces".to_owned())
    });
    set(&mut settings.origins, reader.read("http.origins", list(http::origin)));
}

/// Refuses an address that others can reach without having to prove anything.
pub(super) fn require_proof(settings: &http::Settings, reader: &mut Reader) {
    let is_set = ["http.token", "http.jwt.secret", "http.jwt.jwks"].iter().any(|key| reader.is_set(key));
    if !is_set && settings.listen.is_some_and(|listen| !listen.ip().is_loopback()) {
        reader.refuse(
            "http.listen",
            "is reachable from other machines and needs http.token or [http.jwt]; \
             set PGOUTBOX__HTTP__TOKEN or use 127.0.0.1",
        );
    }
}

pub(super) fn realtime(settings: &mut live::Settings, reader: &mut Reader) {
    set(&mut settings.enabled, reader.read("realtime.enabled", switch));
    set(&mut settings.channels_only, reader.read("realtime.channels_only", switch));
    for (key, limit, range) in [
        ("realtime.max_connections", &mut settings.max_connections, 1..=1_000_000),
        ("realtime.max_per_address", &mut settings.max_per_address, 1..=1_000_000),
        ("realtime.max_subscriptions", &mut settings.max_subscriptions, 1..=1_000),
        ("realtime.max_message", &mut settings.max_message, 1_024..=1_048_576),
        ("realtime.buffer", &mut settings.buffer, 65_536..=4_000_000_000),
        ("realtime.max_snapshot", &mut settings.max_snapshot, 1..=1_000_000),
    ] {
        set(limit, reader.read(key, number(range)).and_then(|number| usize::try_from(number).ok()));
    }
    let seconds = |from, to| duration(Duration::from_secs(from)..=Duration::from_secs(to));
    set(&mut settings.heartbeat, reader.read("realtime.heartbeat", seconds(1, 300)));
    set(&mut settings.max_lag, reader.read("realtime.max_lag", seconds(1, 86_400)));
}

impl Telemetry {
    pub(super) fn read(&mut self, reader: &mut Reader) {
        let filter = |value: &Value| {
            let text = text(value)?;
            tracing_subscriber::EnvFilter::try_new(&text)
                .map(|_| text)
                .map_err(|error| format!("is not a log filter: {error}"))
        };
        set(&mut self.log, reader.read("telemetry.log", filter));
        self.format =
            reader.read("telemetry.format", one_of(&[("text", LogFormat::Text), ("json", LogFormat::Json)]));
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

fn set<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn label(value: &Value) -> Result<String, String> {
    let label = text(value)?;
    let fits = label.len() <= 63
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte));
    fits.then_some(label).ok_or_else(|| "must be 1 to 63 letters, digits and . _ : -".to_owned())
}

fn off_or<T>(
    parse: impl FnOnce(&Value) -> Result<T, String>,
) -> impl FnOnce(&Value) -> Result<Option<T>, String> {
    move |value| if value.as_str() == Some("off") { Ok(None) } else { parse(value).map(Some) }
}

fn one_of<T: Copy>(values: &[(&str, T)]) -> impl Fn(&Value) -> Result<T, String> {
    move |value| {
        values.iter().find(|(name, _)| value.as_str() == Some(name)).map(|(_, meaning)| *meaning).ok_or_else(
            || {
                let quoted: Vec<_> = values.iter().map(|(name, _)| format!("{name:?}")).collect();
                format!("must be {}", quoted.join(" or "))
            },
        )
    }
}

fn range(item: &str) -> Result<IpNet, String> {
    let range: IpNet = item
        .parse()
        .or_else(|_| item.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "is not a range of addresses, such as 10.0.0.0/8 or fd00::/8")?;
    if range == range.trunc() {
        Ok(range)
    } else {
        Err(format!("has bits beyond its prefix; write {}", range.trunc()))
    }
}
