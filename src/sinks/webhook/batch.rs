//! Several events in one request, for receivers that support it. They may acknowledge a part of the events.
//! Sends nothing.

use std::{collections::HashSet, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{Batch, Outgoing, Report, body::Body},
};

/// Most events in one request.
const MOST: usize = 1_000;
/// Smallest and largest `bytes`. The rest of 1 MiB is for the JSON around the payloads.
const BYTES: (usize, usize) = (1_024, 640 * 1_024);
/// Longest `wait`.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Concurrent requests of one subscription.
const IN_FLIGHT: usize = 4;

/// Parses `config.batch`.
pub(super) fn parse(value: &Value) -> Result<Batch, String> {
    let fields = value
        .as_object()
        .ok_or("config.batch: must be an object such as {\"max\": 100, \"wait\": \"200ms\"}")?;
    let mut batch =
        Batch { max: 100, bytes: 512 * 1_024, wait: Duration::ZERO, in_flight: IN_FLIGHT, shares_fate: true };
    for (name, value) in fields {
        match name.as_str() {
            "max" => batch.max = number(value, "max", (1, MOST))?,
            "bytes" => batch.bytes = number(value, "bytes", BYTES)?,
            "wait" => {
                let wait =
                    value.as_str().ok_or("config.batch.wait: must be a string with a unit, such as 200ms")?;
                batch.wait =
                    duration::parse(wait).map_err(|problem| format!("config.batch.wait: {problem}"))?;
                if batch.wait > LONGEST_WAIT {
                    return Err("config.batch.wait: must be at most 5s".to_owned());
                }
            }
            _ => {
                return Err(format!(
                    "config.batch.{}: unknown field; a batch has max, bytes, wait",
                    name.escape_debug()
                ));
            }
        }
    }
    Ok(batch)
}

fn number(value: &Value, field: &str, (least, most): (usize, usize)) -> Result<usize, String> {
    value
        .as_u64()
        .and_then(|number| usize::try_from(number).ok())
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("config.batch.{field}: must be a whole number from {least} to {most}"))
}

/// The events as a JSON array. A standard body contains the event's `id`: the request has another one.
pub(super) fn body(form: Body, deliveries: &[Outgoing]) -> Vec<u8> {
    let mut body = vec![b'['];
    for delivery in deliveries {
        if body.len() > 1 {
            body.push(b',');
        }
        let one = form.of(&delivery.event);
        match one.strip_prefix(b"{") {
            Some(rest) if form == Body::Standard => {
                body.extend_from_slice(format!("{{\"id\":\"{}\",", delivery.event.id).as_bytes());
                body.extend_from_slice(rest);
            }
            _ => body.extend_from_slice(&one),
        }
    }
    body.push(b']');
    body
}

/// Id of the request: the same for the same events, so that a receiver can detect a repeated request.
pub(super) fn id(deliveries: &[Outgoing]) -> Uuid {
    let mut hash = Sha256::new();
    for delivery in deliveries {
        hash.update(delivery.event.id.as_bytes());
    }
    let hash = hash.finalize();
    uuid::Builder::from_custom_bytes(hash[..16].try_into().unwrap_or_default()).into_uuid()
}

/// A report for each event of a request. `answer` is the whole body of a 2xx response.
pub(super) fn reports(report: Report, answer: &[u8], deliveries: &[Outgoing]) -> Vec<Report> {
    match report.outcome {
        Outcome::Delivered => {}
        // One event may be the cause: retries are sent alone.
        Outcome::Rejected { reason } if deliveries.len() > 1 => {
            return vec![
                Report { outcome: Outcome::Retry { reason, after: None }, ..report };
                deliveries.len()
            ];
        }
        Outcome::Rejected { .. } | Outcome::Retry { .. } | Outcome::Gone => {
            return vec![report; deliveries.len()];
        }
    }
    let Some(failed) = failed(answer, deliveries) else {
        let unclear = Report {
            outcome: Outcome::Retry { reason: Reason::BrokenAnswer, after: None },
            ambiguous: true,
            ..report
        };
        return vec![unclear; deliveries.len()];
    };
    let refused =
        Report { outcome: Outcome::Retry { reason: Reason::NotAcknowledged, after: None }, ..report.clone() };
    deliveries
        .iter()
        .map(|one| if failed.contains(&one.event.id) { refused.clone() } else { report.clone() })
        .collect()
}

/// Ids of the events that a response lists as failed. None if it cannot be parsed or lists other ids: then no
/// event counts as delivered. A response that is not a JSON object lists none.
fn failed(answer: &[u8], deliveries: &[Outgoing]) -> Option<HashSet<Uuid>> {
    #[derive(Deserialize)]
    struct Answer {
        failed: Option<Vec<Uuid>>,
    }
    if !answer.trim_ascii_start().starts_with(b"{") {
        return Some(HashSet::new());
    }
    let sent: HashSet<Uuid> = deliveries.iter().map(|one| one.event.id).collect();
    let failed: HashSet<Uuid> =
        serde_json::from_slice::<Answer>(answer).ok()?.failed.unwrap_or_default().into_iter().collect();
    failed.is_subset(&sent).then_some(failed)
}
