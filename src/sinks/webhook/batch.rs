//! Several events in one request, by agreement with the receiver, which may acknowledge a part of them. Never sends anything.

use std::{collections::HashSet, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{Batch, Outgoing, Report, body::Body},
};

/// Events in one request at most.
const MOST: usize = 1_000;
/// Bytes of payload in one request: at least and at most. The rest of 1 MiB is for what stands around payloads.
const BYTES: (usize, usize) = (1_024, 640 * 1_024);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Requests of one subscription under way at once.
const IN_FLIGHT: usize = 4;

/// Reads `config.batch`.
pub(super) fn parse(value: &Value) -> Result<Batch, String> {
    let fields = value
        .as_object()
        .ok_or("config.batch: it must be an object such as {\"max\": 100, \"wait\": \"200ms\"}")?;
    let mut batch =
        Batch { max: 100, bytes: 512 * 1_024, wait: Duration::ZERO, in_flight: IN_FLIGHT, shares_fate: true };
    for (name, value) in fields {
        match name.as_str() {
            "max" => batch.max = number(value, "max", (1, MOST))?,
            "bytes" => batch.bytes = number(value, "bytes", BYTES)?,
            "wait" => {
                let wait = value
                    .as_str()
                    .ok_or("config.batch.wait: it must be a string with a unit, such as 200ms")?;
                batch.wait =
                    duration::parse(wait).map_err(|problem| format!("config.batch.wait: {problem}"))?;
                if batch.wait > LONGEST_WAIT {
                    return Err("config.batch.wait: it must be at most 5s".to_owned());
                }
            }
            _ => {
                return Err(format!(
                    "config.batch.{}: there is no such field; a batch has max, bytes, wait",
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
        .ok_or_else(|| format!("config.batch.{field}: it must be a whole number from {least} to {most}"))
}

/// A JSON array of the events. A standard body gets its `id`, for the request has another one.
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

/// What the request is called: the same for the same events, so that a receiver may tell a repeated request.
pub(super) fn id(deliveries: &[Outgoing]) -> Uuid {
    let mut hash = Sha256::new();
    for delivery in deliveries {
        hash.update(delivery.event.id.as_bytes());
    }
    let hash = hash.finalize();
    uuid::Builder::from_custom_bytes(hash[..16].try_into().unwrap_or_default()).into_uuid()
}

/// A report for each event of an answered request. `answer`: the whole body of a 2xx answer.
pub(super) fn reports(report: Report, answer: &[u8], deliveries: &[Outgoing]) -> Vec<Report> {
    match report.outcome {
        Outcome::Delivered => {}
        // One of them may be to blame: what is tried again travels alone.
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

/// The events that an answer names as failed. `None`: it names something else, or nobody can tell, so none may be taken for
/// delivered. An answer that is no JSON object names none.
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
