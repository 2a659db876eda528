//! The handler sink: functions of the program the relay is embedded in. At least once: a handler bears the same event twice.
//!
//! A panic is a failed attempt and ends nothing; a handler that does not come back is dropped at its deadline.

use std::{collections::BTreeMap, error::Error, fmt, future::Future, pin::Pin, sync::Arc, time::Duration};

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    delivery::{Outcome, Reason, duration},
    event::Event,
    sink::{Outgoing, Problem, Report, Sink, parse_config},
};

const LONGEST: Duration = Duration::from_secs(60);

/// What a handler returns when it failed: any error is tried again, [`Rejected`] is not.
pub type HandlerError = Box<dyn Error + Send + Sync>;

type Handler =
    Arc<dyn Fn(Arc<Event>) -> Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>> + Send + Sync>;

/// An error of a handler that says: this event will never work. It becomes a dead letter at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Rejected(pub String);

/// The payload is not what a typed handler takes.
#[derive(Debug, thiserror::Error)]
#[error("the payload is not what the handler takes: {0}")]
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
    /// Its name in the program.
    handler: String,
    /// How long one event may take.
    #[serde(default = "timeout", deserialize_with = "duration::deserialize")]
    timeout: Duration,
}

fn timeout() -> Duration {
    Duration::from_secs(30)
}

/// A handler, and how long it may take.
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

    /// Adds a handler that gets the payload in a type of its own; an event whose payload is none becomes a dead letter.
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
            return Err(format!(
                "config.timeout: it must be above 0 and at most {}",
                duration::format(LONGEST)
            )
            .into());
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
        match (target.handler)(delivery.event.clone()).await {
            Ok(()) => Outcome::Delivered.into(),
            Err(error) => {
                let outcome = if error.is::<Rejected>() {
                    Outcome::Rejected { reason: Reason::HandlerFailed }
                } else if error.is::<Unreadable>() {
                    Outcome::Rejected { reason: Reason::PayloadUnusable }
                } else {
                    Outcome::Retry { reason: Reason::HandlerFailed, after: None }
                };
                Report::from(outcome).saying(error)
            }
        }
    }
}
