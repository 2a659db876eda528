//! Follows events over one connection after the other, each from where the last has ended.

use std::{io, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::Value;
use tokio_tungstenite::tungstenite::{
    self, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use super::{
    Shown,
    connect::{Address, Failed, Socket},
};
use crate::{
    cli::{Misuse, print},
    store::retry_waits,
};

/// The subscription's id.
pub(super) const ID: &str = "tail";
/// After so long without a word the relay is asked for a sign of life, and after as long again it is gone.
const SILENCE: Duration = Duration::from_secs(30);
/// Longest wait that a relay may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Why nothing more is followed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All that was wanted has come.
    Enough,
    /// There was never a connection.
    Unreachable(String),
    /// The relay does not permit it.
    Denied(String),
    /// The arguments are wrong.
    Wrong(String),
    /// It cannot go on.
    Failed(String),
}

/// What ends a connection.
#[derive(Debug, PartialEq, Eq)]
enum Broken {
    /// Everything.
    End(End),
    /// It goes on over another connection, not before this time has passed.
    Again(String, Duration),
}

/// A message of the relay. Each type has some of the fields. No enum, because the library could then not read
/// the payload as it was written.
#[derive(Debug, Deserialize)]
struct Told {
    #[serde(rename = "type")]
    kind: String,
    token: Option<String>,
    event: Option<Box<Shown>>,
    behind: Option<f64>,
    code: Option<String>,
    reason: Option<String>,
}

/// Shows an event, and says whether that is enough.
pub(super) type Show<'s> = &'s mut dyn FnMut(&Shown) -> io::Result<bool>;

/// Follows events.
pub(super) struct Follower {
    subscribe: Value,
    last: Option<String>,
    was_connected: bool,
    was_followed: bool,
}

impl Follower {
    /// Begins with this message.
    pub(super) fn new(subscribe: Value) -> Self {
        Self { subscribe, last: None, was_connected: false, was_followed: false }
    }

    /// The token behind the last event that was shown.
    pub(super) fn last_token(&self) -> Option<&str> {
        self.last.as_deref()
    }

    /// Follows until something ends it.
    pub(super) async fn run(
        &mut self,
        address: &Address,
        token: &impl Fn() -> Result<Option<SecretString>, Misuse>,
        show: Show<'_>,
    ) -> anyhow::Result<End> {
        let mut waits = retry_waits();
        loop {
            let before = self.last.clone();
            let broken = match address.connect(token()?.as_ref()).await {
                Ok(socket) => {
                    if self.was_connected {
                        print::note!("connected again");
                    } else {
                        print::note!("connected to {}", address.shown());
                    }
                    self.was_connected = true;
                    self.follow(socket, show).await?
                }
                Err(Failed::Denied(why)) => Broken::End(End::Denied(why)),
                Err(Failed::Refused(why)) => Broken::End(End::Failed(why)),
                Err(Failed::Unreachable(why, _)) if !self.was_connected => Broken::End(End::Unreachable(why)),
                Err(Failed::Unreachable(why, after)) => Broken::Again(why, after),
            };
            if self.last != before {
                // It got on, so the next failure is a new one.
                waits = retry_waits();
            }
            match broken {
                Broken::End(end) => return Ok(end),
                Broken::Again(why, after) => {
                    let wait = waits.next().unwrap_or(LONGEST_WAIT).max(after.min(LONGEST_WAIT));
                    print::note!("{why}; reconnecting in {:.1} s", wait.as_secs_f64());
                    // Signals end it from outside.
                    let _ = tokio::time::timeout(wait, std::future::pending::<()>()).await;
                }
            }
        }
    }

    /// Follows over this connection.
    async fn follow(&mut self, mut socket: Socket, show: Show<'_>) -> anyhow::Result<Broken> {
        let again = |why: String| Broken::Again(why, Duration::ZERO);
        let mut subscribe = self.subscribe.clone();
        if let (Some(token), Some(fields)) = (&self.last, subscribe.as_object_mut()) {
            fields.remove("snapshot");
            fields.insert("since".to_owned(), token.clone().into());
        }
        if let Err(why) = say(&mut socket, subscribe.to_string()).await {
            return Ok(again(why));
        }
        let mut is_asked = false;
        loop {
            let Ok(next) = tokio::time::timeout(SILENCE, socket.next()).await else {
                if is_asked {
                    return Ok(again("the relay is silent".to_owned()));
                }
                is_asked = true;
                if let Err(why) = say(&mut socket, r#"{"type":"ping"}"#.to_owned()).await {
                    return Ok(again(why));
                }
                continue;
            };
            is_asked = false;
            let broken = match next {
                Some(Ok(Message::Text(text))) => self.take(text.as_str(), show)?,
                Some(Ok(Message::Close(close))) => Some(closed(close.as_ref())),
                Some(Ok(_)) => None,
                Some(Err(error)) => Some(again(lost(&error))),
                None => Some(again("the connection was closed".to_owned())),
            };
            if let Some(broken) = broken {
                let _ = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
                return Ok(broken);
            }
        }
    }

    /// Takes a message.
    fn take(&mut self, text: &str, show: Show<'_>) -> anyhow::Result<Option<Broken>> {
        let told: Told = match serde_json::from_str(text) {
            Ok(told) => told,
            Err(error) => {
                let why = format!("a message cannot be read ({error}); is this a relay of another version?");
                return Ok(Some(Broken::End(End::Failed(why))));
            }
        };
        match (told.kind.as_str(), told.token, told.event) {
            ("event", Some(token), Some(mut event)) => {
                event.token.clone_from(&token);
                let is_enough = show(&event)?;
                // After it was shown, so that nothing is left out.
                self.last = Some(token);
                if is_enough {
                    return Ok(Some(Broken::End(End::Enough)));
                }
            }
            ("subscribed", Some(token), _) => {
                if !std::mem::replace(&mut self.was_followed, true) {
                    print::note!("following, until Ctrl-C");
                }
                self.last = Some(token);
            }
            ("caught_up", Some(token), _) => self.last = Some(token),
            ("lagging", ..) => print::note!("lagging: {:.0} s behind", told.behind.unwrap_or_default()),
            ("error", ..) => {
                return Ok(refused(&told.code.unwrap_or_default(), &told.reason.unwrap_or_default()));
            }
            _ => {}
        }
        Ok(None)
    }
}

/// Sends a message, or says why it cannot be sent.
async fn say(socket: &mut Socket, text: String) -> Result<(), String> {
    match tokio::time::timeout(SILENCE, socket.send(Message::text(text))).await {
        Ok(sent) => sent.map_err(|error| lost(&error)),
        Err(_) => Err("the relay does not read".to_owned()),
    }
}

/// What a refusal means; none: it goes on without an event.
fn refused(code: &str, reason: &str) -> Option<Broken> {
    let why = format!("{code}: {reason}");
    Some(match code {
        "unreadable_event" | "filter_failed" => {
            print::note!("{why}");
            return None;
        }
        "unavailable" => Broken::Again(why, Duration::ZERO),
        "forbidden" | "channels_only" => Broken::End(End::Denied(why)),
        "token_too_old" | "other_database" => {
            let fix = "begin anew with --snapshot, with --since 10m or another time, or without --since";
            Broken::End(End::Failed(format!("{why}; {fix}")))
        }
        "snapshot_too_large" | "too_many_subscriptions" => Broken::End(End::Failed(why)),
        _ => Broken::End(End::Wrong(why)),
    })
}

/// What the close of the relay means. A token that has expired is read again, and refused if it is the
/// same.
fn closed(close: Option<&CloseFrame>) -> Broken {
    let Some(close) = close else {
        return Broken::Again("the relay closed the connection".to_owned(), Duration::ZERO);
    };
    let hint: Value = serde_json::from_str(close.reason.as_str()).unwrap_or_default();
    let after = Duration::from_millis(hint["retry_after_ms"].as_u64().unwrap_or_default());
    let why = match close.code {
        // It would be so again.
        CloseCode::Size => {
            let why =
                "the patterns, keys and filter together are longer than the relay's realtime.max_message";
            return Broken::End(End::Wrong(why.to_owned()));
        }
        CloseCode::Away => "the relay stops".to_owned(),
        CloseCode::Again => "the relay has no more room, or this fell too far behind".to_owned(),
        _ => format!("the relay closed the connection ({}): {}", u16::from(close.code), close.reason),
    };
    Broken::Again(why, after)
}

fn lost(error: &tungstenite::Error) -> String {
    format!("the connection was lost: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_about_the_arguments_the_rights_or_passes() {
        for (code, expected) in [
            ("unavailable", "again"),
            ("forbidden", "denied"),
            ("channels_only", "denied"),
            ("token_too_old", "failed"),
            ("other_database", "failed"),
            ("snapshot_too_large", "failed"),
            ("bad_filter", "wrong"),
            ("unknown_channel", "wrong"),
            ("unreadable_event", "goes on"),
            ("filter_failed", "goes on"),
        ] {
            let found = match refused(code, "because") {
                None => "goes on",
                Some(Broken::Again(..)) => "again",
                Some(Broken::End(End::Denied(_))) => "denied",
                Some(Broken::End(End::Wrong(_))) => "wrong",
                Some(Broken::End(_)) => "failed",
            };
            assert_eq!(found, expected, "{code}");
        }
    }

    #[test]
    fn a_relay_that_stops_says_when_to_come_back() {
        let close = |code, reason: &str| CloseFrame { code, reason: reason.to_owned().into() };
        let Broken::Again(_, after) = closed(Some(&close(CloseCode::Away, r#"{"retry_after_ms":1234}"#)))
        else {
            panic!("it ended")
        };
        assert_eq!(after, Duration::from_millis(1_234));
        let Broken::Again(why, after) = closed(Some(&close(CloseCode::Policy, "the token has expired")))
        else {
            panic!("it ended")
        };
        assert!(why.contains("has expired") && after.is_zero(), "{why}");
        // Coming back would not help.
        assert!(matches!(closed(Some(&close(CloseCode::Size, "too large"))), Broken::End(End::Wrong(_))));
    }
}
