//! The function sink: calls a SQL function in the outbox's own database, in the transaction that settles the
//! delivery. Its effect happens exactly once: both are committed, or neither.
//!
//! It is the only sink that touches the outbox: it deletes the delivery.

mod connections;

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use self::connections::CallError;
pub use self::connections::Functions;
use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{
        Batch, Outgoing, Problem, Report, Sink, body, only, parse_config, shortage,
        sqlstate::{Class, class},
    },
};

/// Longest `timeout`.
const LONGEST: Duration = Duration::from_secs(50);
/// Time that the relay's deadline adds to `timeout`, so that the server reports the timeout itself.
const GRACE: Duration = Duration::from_secs(7);

/// Most concurrent transactions of one subscription.
const MOST_CONCURRENT: u8 = 4;

/// Calls functions.
#[derive(Debug, Clone)]
pub struct Function {
    functions: Arc<Functions>,
}

/// A subscription's config.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Function with its schema, such as `shop.on_order`.
    function: String,
    /// Timeout of one batch of calls.
    #[serde(default = "timeout", deserialize_with = "duration::deserialize")]
    timeout: Duration,
    /// Most events in one transaction.
    #[serde(default = "most")]
    batch: u16,
    /// Concurrent transactions in each relay.
    #[serde(default = "one")]
    concurrency: u8,
}

fn timeout() -> Duration {
    Duration::from_secs(15)
}

fn most() -> u16 {
    50
}

fn one() -> u8 {
    1
}

impl Function {
    /// A sink that calls functions through these connections.
    #[must_use]
    pub fn new(functions: Functions) -> Self {
        Self { functions: Arc::new(functions) }
    }
}

impl Sink for Function {
    const KIND: &'static str = "function";
    const SETTLES: bool = true;
    type Target = Target;

    fn target(&self, config: &Value) -> Result<Target, Problem> {
        let target: Target = parse_config(config)?;
        if !target.function.contains('.') {
            return Err("config.function: write the function with its schema, such as \"shop.on_order\""
                .to_owned()
                .into());
        }
        if target.timeout.is_zero() || target.timeout > LONGEST {
            return Err(
                format!("config.timeout: must be above 0 and at most {}", duration::format(LONGEST)).into()
            );
        }
        // More than 64 savepoints in a transaction slow down every snapshot of the database.
        if !(1..=64).contains(&target.batch) {
            return Err("config.batch: must be a whole number from 1 to 64".to_owned().into());
        }
        // All functions share one pool of connections.
        if !(1..=MOST_CONCURRENT).contains(&target.concurrency) {
            return Err(
                format!("config.concurrency: must be a whole number from 1 to {MOST_CONCURRENT}").into()
            );
        }
        Ok(target)
    }

    fn destination(&self, target: &Target) -> Option<String> {
        Some(format!("function:{}", target.function))
    }

    fn deadline(&self, target: &Target) -> Duration {
        target.timeout + GRACE
    }

    fn batch(&self, target: &Target) -> Option<Batch> {
        Some(Batch {
            max: target.batch.into(),
            bytes: 4 * 1024 * 1024,
            wait: Duration::ZERO,
            in_flight: target.concurrency.into(),
            shares_fate: true,
        })
    }

    async fn send(&self, target: &Target, delivery: &Outgoing) -> Report {
        only(self.send_batch(target, std::slice::from_ref(delivery)).await)
    }

    async fn send_batch(&self, target: &Target, deliveries: &[Outgoing]) -> Vec<Report> {
        let Some(leases) = deliveries.iter().map(|delivery| delivery.lease).collect::<Option<Vec<_>>>()
        else {
            let report = Report::from(Outcome::Retry { reason: Reason::SinkBroken, after: None });
            return vec![
                report.with_answer("the delivery has no lease and cannot be settled");
                deliveries.len()
            ];
        };
        let events: Vec<String> = deliveries.iter().map(|delivery| body::whole(&delivery.marked())).collect();
        match self.functions.call(&target.function, target.timeout, &leases, &events).await {
            Ok(called) => called
                .into_iter()
                .map(|one| match one.code {
                    None => Report { settled: true, ..Outcome::Delivered.into() },
                    Some(code) => raised(&code, &one.message.unwrap_or_default()),
                })
                .collect(),
            Err(error @ (CallError::Undone(_) | CallError::TooLong(_))) => {
                vec![undone(&error); deliveries.len()]
            }
            Err(error @ (CallError::Unknown(_) | CallError::Silent(_))) => {
                vec![undone(&error).ambiguous(); deliveries.len()]
            }
        }
    }

    async fn check(&self, target: &Target) -> Result<(), Problem> {
        match self.functions.inspect(&target.function).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(format!(
                "config.function: the relay's login may not call {}; \
                                 grant execute on the function and usage on its schema",
                target.function
            )
            .into()),
            Err(error) => Err(error.message().into()),
        }
    }
}

/// The report for a function that raised an error. Only its own effect was rolled back.
fn raised(code: &str, message: &str) -> Report {
    let reason = match class(code) {
        Class::NoRights => Reason::AccessDenied,
        Class::Missing => Reason::TargetMissing,
        _ => Reason::FunctionFailed,
    };
    Report::from(Outcome::Retry { reason, after: None }).with_answer(format!("{code}: {message}"))
}

/// The report for a transaction that was rolled back, or whose result is unknown.
fn undone(error: &CallError) -> Report {
    if let CallError::TooLong(_) = error {
        return Report::from(Outcome::Retry { reason: Reason::Timeout, after: None }).with_answer(error);
    }
    if let Some(lack) = error.lack() {
        return shortage::report(lack);
    }
    match error.code() {
        Some(code) if !matches!(class(&code), Class::Unavailable | Class::ReadOnly) => {
            raised(&code, &error.message())
        }
        _ => Report::from(Outcome::Retry { reason: Reason::ConnectFailed, after: None })
            .with_answer(error.message()),
    }
}
