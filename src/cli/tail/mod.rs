//! `tail`: follows events through the HTTP of a relay or a gateway, as any live client does, and prints them.

mod connect;
mod follow;

use std::{net::SocketAddr, path::PathBuf, time::SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::{
    connect::Address,
    follow::{End, Follower},
};
use super::{
    Misuse,
    config::{Config, Several, Sources},
    exit::Exit,
    moment, print,
    signals::Signals,
};
use crate::{delivery::duration, event::JsonText, sinks};

/// Characters of a payload that people are shown.
const SHORT: usize = 160;

#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true).multiple(false).args(["patterns", "channel"]))]
pub(super) struct Tail {
    /// Topic patterns, such as '**' or shop.orders.*
    #[arg(value_name = "PATTERN", value_parser = super::deliveries::topic_pattern)]
    patterns: Vec<String>,
    /// Join this channel instead.
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Only events whose key begins like this. Can be repeated.
    #[arg(long, value_name = "PREFIX")]
    key: Vec<String>,
    /// Only events for which this condition in CEL is true.
    #[arg(long, value_name = "CEL")]
    filter: Option<String>,
    /// Begin after a token, at a time, or a duration ago, such as 10m. Without it only what is new is shown.
    #[arg(long, value_name = "TOKEN|TIME|DURATION", conflicts_with = "snapshot")]
    since: Option<String>,
    /// Show the newest event of each key first.
    #[arg(long)]
    snapshot: bool,
    /// Address of a relay or a gateway [default: http.listen].
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// File with the token [default: http.token].
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// End after so many events.
    #[arg(short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    n: Option<u64>,
}

/// An event, as `--json` prints it.
#[derive(Debug, Deserialize, Serialize)]
struct Shown {
    id: String,
    topic: String,
    key: Option<String>,
    organization: Option<String>,
    source: Option<String>,
    user_id: Option<String>,
    schema_version: Option<i32>,
    created_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deliver_after: Option<DateTime<Utc>>,
    headers: JsonText,
    payload: JsonText,
    #[serde(default)]
    token: String,
}

impl Tail {
    pub(super) async fn execute(self, sources: &Sources) -> anyhow::Result<Exit> {
        let config = self.config(sources)?;
        let listen = config.http.listen.map(address_of);
        let url = self.url.clone().or(listen).ok_or_else(|| {
            Misuse("http.listen is off, so nothing serves here; name a relay with --url".to_owned())
        })?;
        let address = Address::of(&url, &config.egress)?;
        // Read at each connect: who makes tokens that expire may write a new one into the file.
        let token = || match &self.token_file {
            Some(file) => sources
                .resolve(&format!("file:{}", file.display()))
                .map(Some)
                .map_err(|problem| Misuse(format!("--token-file: {problem}"))),
            None => Ok(config.http.token.clone()),
        };
        token()?;
        let mut signals = Signals::new()?;
        let mut follower = Follower::new(self.subscribe()?);
        let (json, mut left) = (self.json, self.n);
        let mut show = |event: &Shown| {
            show(event, json)?;
            left = left.map(|left| left - 1);
            Ok(left == Some(0))
        };
        let end = tokio::select! {
            end = follower.run(&address, &token, &mut show) => end?,
            () = signals.next() => End::Enough,
        };
        if let Some(token) = follower.last_token() {
            print::note!("continue with --since {token}");
        }
        let (exit, why) = match end {
            End::Enough => return Ok(Exit::Done),
            End::Unreachable(why) => (Exit::Unreachable, why),
            End::Denied(why) => (Exit::Denied, why),
            End::Wrong(why) => (Exit::Usage, why),
            End::Failed(why) => (Exit::Failed, why),
        };
        print::note!("pgoutbox: {}: {why}", address.shown());
        Ok(exit)
    }

    /// The configuration, for what the arguments do not say. The database is not asked.
    fn config(&self, sources: &Sources) -> anyhow::Result<Config> {
        if self.url.is_some() && self.token_file.is_some() {
            return Ok(Config::new(SecretString::default()));
        }
        if let Some(several) = Several::load(sources, sinks::CONFIGURED)? {
            // Of a gateway with the same token.
            return Ok(several.common);
        }
        let mut sources = sources.clone();
        sources.flags.push(("database.url", "--database-url", "postgres:///".to_owned()));
        Ok(Config::load(&sources, sinks::CONFIGURED)?)
    }

    /// The message that asks for the events.
    fn subscribe(&self) -> Result<serde_json::Value, Misuse> {
        let mut message = json!({ "type": "subscribe", "id": follow::ID });
        if !self.patterns.is_empty() {
            message["topics"] = json!(self.patterns);
        }
        if let Some(channel) = &self.channel {
            message["channel"] = json!(channel);
        }
        if !self.key.is_empty() {
            message["keys"] = json!(self.key);
        }
        if let Some(filter) = &self.filter {
            message["filter"] = json!(filter);
        }
        if self.snapshot {
            message["snapshot"] = json!(true);
        }
        if let Some(since) = &self.since {
            // There is no database whose clock could be read.
            message["since"] = json!(since_of(since, SystemTime::now().into())?);
        }
        Ok(message)
    }
}

/// A time or a token, as the relay reads it.
fn since_of(since: &str, now: DateTime<Utc>) -> Result<String, Misuse> {
    if let Ok(ago) = duration::parse(since) {
        let at = chrono::Duration::from_std(ago).ok().and_then(|ago| now.checked_sub_signed(ago));
        let at = at.ok_or_else(|| Misuse(format!("--since: {since} is too long")))?;
        return Ok(at.to_rfc3339_opts(SecondsFormat::Micros, true));
    }
    if since.contains(':') {
        let at = DateTime::parse_from_rfc3339(since).map_err(|error| {
            Misuse(format!("--since: {since:?} is no time ({error}); write 2026-01-31T12:00:00Z"))
        })?;
        return Ok(at.to_utc().to_rfc3339_opts(SecondsFormat::Micros, true));
    }
    Ok(since.to_owned())
}

/// Where a server that listens there is reached from this machine.
fn address_of(mut listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        listen.set_ip(if listen.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        });
    }
    format!("http://{listen}")
}

fn show(event: &Shown, json: bool) -> std::io::Result<()> {
    if json { print::json([event]) } else { print::line(&line(event)) }
}

/// An event on a line: time, topic, key, and the beginning of its payload.
fn line(event: &Shown) -> String {
    let mut payload: String = event.payload.as_str().chars().take(SHORT).collect();
    if payload.len() < event.payload.as_str().len() {
        payload.push('…');
    }
    let key = event.key.as_deref().unwrap_or("-");
    format!("{}  {}  {key}  {payload}", moment::shown(event.created_at), event.topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_a_time_or_a_token() {
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        assert_eq!(since_of("10m", now).unwrap(), "2026-01-31T11:50:00.000000Z");
        assert_eq!(since_of("2026-01-31T12:00:00+01:00", now).unwrap(), "2026-01-31T11:00:00.000000Z");
        assert_eq!(since_of("AbC-_", now).unwrap(), "AbC-_");
        assert!(since_of("12:00", now).unwrap_err().0.contains("2026-01-31T12:00:00Z"));
    }

    #[test]
    fn a_relay_that_listens_everywhere_is_asked_on_loopback() {
        assert_eq!(address_of("0.0.0.0:7411".parse().unwrap()), "http://127.0.0.1:7411");
        assert_eq!(address_of("[::]:80".parse().unwrap()), "http://[::1]:80");
        assert_eq!(address_of("10.0.0.7:1".parse().unwrap()), "http://10.0.0.7:1");
    }

    #[test]
    fn a_long_payload_is_shortened_between_two_characters() {
        let payload = format!("\"{}\"", "é".repeat(500));
        let event: Shown = serde_json::from_str(&format!(
            r#"{{"id":"1","topic":"a.b","key":null,"created_at":"2026-01-31T12:00:00Z","headers":{{}},
                "payload":{payload}}}"#
        ))
        .unwrap();
        let line = line(&event);
        assert!(line.ends_with("é…") && line.contains("  a.b  -  \"é"), "{line}");
        assert_eq!(line.split("  ").last().unwrap().chars().count(), SHORT + 1);
    }
}
