//! Several events in one request, for receivers that support it. They may acknowledge a part of the events.
//! Sends nothing.

use std::{collections::HashSet, time::Duration};

use http::{HeaderMap, HeaderName, StatusCode, header};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    delivery::{Outcome, Reason, duration},
    sink::{Batch, Outgoing, Report, body::Body},
};

use super::answer::shortened;

/// Most events in one request.
const MOST: usize = 1_000;
/// Smallest and largest `bytes`. The rest of 1 MiB is for the JSON around the payloads.
const BYTES: (usize, usize) = (1_024, 640 * 1_024);
/// Longest `wait`.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Concurrent requests of one subscription.
const IN_FLIGHT: usize = 4;

const UNREADABLE: &str = "no readable list of failed ids";

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

/// A report for each event of a request. `answer` is the whole answer of a 2xx response.
pub(super) fn reports(report: Report, answer: Option<&Answer>, deliveries: &[Outgoing]) -> Vec<Report> {
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
    let failed = answer.ok_or_else(|| UNREADABLE.to_owned()).and_then(|answer| failed(answer, deliveries));
    let failed = match failed {
        Ok(failed) => failed,
        Err(problem) => {
            let said = report.answer.as_deref().map(|said| format!(": {said}")).unwrap_or_default();
            let unclear = Report {
                outcome: Outcome::Retry { reason: Reason::BrokenAnswer, after: None },
                ambiguous: true,
                answer: Some(shortened(format!("{problem}{said}"))),
                ..report
            };
            return vec![unclear; deliveries.len()];
        }
    };
    let refused =
        Report { outcome: Outcome::Retry { reason: Reason::NotAcknowledged, after: None }, ..report.clone() };
    deliveries
        .iter()
        .map(|one| if failed.contains(&one.event.id) { refused.clone() } else { report.clone() })
        .collect()
}

/// The whole answer to a batch, as far as it can be read.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its text, or why it is none.
    text: Result<String, String>,
    /// Whether only a list acknowledges anything, because the status says that there is more to read.
    needs_list: bool,
}

impl Answer {
    /// Reads the body of a response with these headers. Nothing is decoded: `accept-encoding` said so.
    pub(super) fn read(status: StatusCode, headers: &HeaderMap, body: Vec<u8>) -> Self {
        Self { text: text(headers, body), needs_list: matches!(status.as_u16(), 206 | 207) }
    }
}

/// The text of a body without a byte order mark.
fn text(headers: &HeaderMap, body: Vec<u8>) -> Result<String, String> {
    if body.is_empty() {
        return Ok(String::new());
    }
    let values = |name: HeaderName| {
        let values = headers.get_all(name).into_iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).trim().to_ascii_lowercase())
    };
    let coded = |coding: &String| !matches!(coding.as_str(), "" | "identity");
    if let Some(coding) = values(header::CONTENT_ENCODING).find(coded) {
        return Err(format!("the content coding {:?} was not asked for and is not read", cut(&coding)));
    }
    let charsets: Vec<_> = values(header::CONTENT_TYPE).filter_map(|value| charset(&value)).collect();
    if let Some(other) = charsets.iter().find(|charset| !has_ascii(charset)) {
        return Err(format!("the charset {:?} is not read; answer in utf-8", cut(other)));
    }
    let is_unicode = charsets.iter().all(|charset| charset.starts_with("utf"));
    let text = match String::from_utf8(body) {
        Ok(text) => text,
        Err(_) if is_unicode => return Err("the answer is not text in utf-8".to_owned()),
        // The names and ids that matter are ASCII.
        Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
    };
    if text.contains('\0') {
        return Err("the answer is not text in utf-8".to_owned());
    }
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// The charset that a lower-case content type names.
fn charset(content_type: &str) -> Option<String> {
    let parameter = content_type.split(';').skip(1).find_map(|part| part.trim().strip_prefix("charset"))?;
    let value = parameter.trim_start().strip_prefix('=').unwrap_or_default();
    Some(
        value
            .trim_matches(|character: char| character.is_whitespace() || "\"'".contains(character))
            .to_owned(),
    )
}

/// Whether each byte below 128 is an ASCII character in this charset, wherever it stands.
fn has_ascii(charset: &str) -> bool {
    matches!(charset, "utf-8" | "utf8" | "us-ascii" | "ascii" | "latin1")
        || ["iso-8859-", "windows-125", "cp125"].iter().any(|family| charset.starts_with(family))
}

/// Foreign text for a message.
fn cut(text: &str) -> &str {
    let end = text.char_indices().nth(40).map_or(text.len(), |(end, _)| end);
    &text[..end]
}

/// Ids of the events that a response lists as failed. Fails closed: what cannot be read, lists other ids, or
/// speaks of failures or of single events in another way than agreed, acknowledges no event.
fn failed(answer: &Answer, deliveries: &[Outgoing]) -> Result<HashSet<Uuid>, String> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default, deserialize_with = "or_null")]
        failed: Option<Vec<Uuid>>,
    }
    let text = answer.text.as_ref().map_err(String::clone)?.trim();
    let sent: HashSet<Uuid> = deliveries.iter().map(|one| one.event.id).collect();
    let list = if text.starts_with('{') {
        serde_json::from_str::<List>(text).map_err(|_| UNREADABLE)?.failed
    } else {
        None
    };
    match list {
        Some(list) => {
            let failed: HashSet<Uuid> = list.into_iter().collect();
            failed.is_subset(&sent).then_some(failed).ok_or_else(|| "a failed id was not sent".to_owned())
        }
        None if answer.needs_list => Err("the status says that events may have failed".to_owned()),
        None if says_more(text, &sent) => Err(UNREADABLE.to_owned()),
        None => Ok(HashSet::new()),
    }
}

/// A list that is given, also as null.
fn or_null<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Vec<Uuid>>, D::Error> {
    Ok(Some(Option::deserialize(value)?.unwrap_or_default()))
}

/// Whether an answer without the list says something of failures or of single events.
fn says_more(text: &str, sent: &HashSet<Uuid>) -> bool {
    let is_list = text.strip_prefix('[').is_some_and(|rest| rest.trim_start() != "]");
    let speaks_of = |word: &[u8]| text.as_bytes().windows(word.len()).any(|at| at.eq_ignore_ascii_case(word));
    let names_one = || {
        let mut ids = text.as_bytes().windows(36).filter(|at| at[8] == b'-' && at[13] == b'-');
        ids.any(|id| Uuid::try_parse_ascii(id).is_ok_and(|id| sent.contains(&id)))
    };
    is_list || speaks_of(b"fail") || names_one()
}
