//! The handler sink: calls functions of the program that embeds the relay, at least once. A handler must
//! accept the same event twice.
//!
//! A panic is a failed attempt. A handler that does not return is dropped at its deadline.

use std::{collections::BTreeMap, error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    delivery::{Outcome, Reason, duration},
    event::Event,
    sink::{Outgoing, Problem, Report, Sink, parse_config},
};

/// Longest `timeout`.
const LONGEST: Duration = Duration::from_secs(60);

/// Error of a handler. Any error is retried, except [`Rejected`].
pub type HandlerError = Box<dyn Error + Send + Sync>;

type Handler =
    Arc<dyn Fn(Arc<Event>) -> Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>> + Send + Sync>;

/// Error of a handler for an event that can never succeed. The delivery becomes a dead letter at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// The payload does not fit the type of a typed handler.
#[derive(Debug, thiserror::Error)]
#[error("the payload does not fit the handler's type: {0}")]
struct Unreadable(serde_json::Error);

/// The handlers of a program, by name.
#[derive(Default, Clone)]
pub struct Handlers {
    handlers: BTreeMap<String, Handler>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}

/// A subscription's config.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    /// Name of the handler in the program.
    handler: String,
    /// Timeout of one event.
    #[serde(default = "timeout", deserialize_with = "duration::deserialize")]
    timeout: Duration,
}

fn timeout() -> Duration {
    Duration::from_secs(30)
}

/// A handler and its timeout.
pub struct Target {
    name: String,
    timeout: Duration,
    handler: Handler,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("name", &self.name)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl Handlers {
    /// Adds a handler; a second one of the same name replaces the first.
    pub fn add<F, A, E>(&mut self, name: impl Into<String>, handler: F)
    where
        F: Fn(Arc<Event>) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError>,
    {
        let handler: Handler = Arc::new(move |event| {
            let attempt = handler(event);
            Box::pin(async move { attempt.await.map_err(Into::into) })
        });
        self.handlers.insert(name.into(), handler);
    }

    /// Adds a handler that gets the payload deserialized. An event whose payload does not fit the type
    /// becomes a dead letter.
    pub fn add_typed<T, F, A, E>(&mut self, name: impl Into<String>, handler: F)
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Arc<Event>, T) -> A + Send + Sync + 'static,
        A: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<HandlerError>,
    {
        self.add(name, move |event: Arc<Event>| {
            let attempt = event.payload::<T>().map(|payload| handler(event.clone(), payload));
            async move {
                match attempt {
                    Ok(attempt) => attempt.await.map_err(Into::into),
                    Err(error) => Err(HandlerError::from(Unreadable(error))),
                }
            }
        });
    }
}

impl Sink for Handlers {
    const KIND: &'static str = "handler";
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let Config { handler: name, timeout }: Config = parse_config(config)?;
        if timeout.is_zero() || timeout > LONGEST {
            return Err(
                format!("config.timeout: must be above 0 and at most {}", duration::format(LONGEST)).into()
            );
        }
        let handler = self.handlers.get(&name).cloned().ok_or_else(|| {
            let known: Vec<_> = self.handlers.keys().map(String::as_str).collect();
            format!("config.handler: this program has no handler {name:?}; it has {}", known.join(", "))
        })?;
        Ok(Target { name, timeout, handler })
    }

    fn destination(&self, _: &Target) -> Option<String> {
        None
    }

    fn deadline(&self, target: &Target) -> Duration {
        target.timeout
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        match (target.handler)(delivery.marked()).await {
            Ok(()) => Outcome::Delivered.into(),
            Err(error) => {
                let outcome = if error.is::<Rejected>() {
                    Outcome::Rejected { reason: Reason::HandlerFailed }
                } else if error.is::<Unreadable>() {
                    Outcome::Rejected { reason: Reason::PayloadUnusable }
                } else {
                    Outcome::Retry { reason: Reason::HandlerFailed, after: None }
                };
                Report::from(outcome).with_answer(error)
            }
        }
    }
}
