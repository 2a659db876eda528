//! Turns a receiver's response into a report. Reads only the beginning of a
//! response, unless it acknowledges a batch. Does not decide when to retry; the verdict does.

use std::{
    fmt::Write,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::{
    batch,
    client::{Client, Failure, Request, Response},
    failure::failure,
    target::Target,
};
use crate::{
    delivery::{LONGEST_PAUSE, Outcome, Reason},
    sink::{Report, redact::Redactor},
};

/// Bytes of a response that are read.
const READ_LIMIT: usize = 16 * 1024;
/// Largest response that acknowledges a batch, in bytes. The ids of 1,000 events are about 40 KiB.
const READ_LIMIT_OF_A_BATCH: usize = 1024 * 1024;
/// Bytes of a response that are kept, after escaping.
const KEEP_LIMIT: usize = 1024;
/// Timeout of reading the body. After it the connection is dropped instead of reused; the status has decided
/// already.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// The report for a response, and what acknowledges a batch. `now` is used for responses without a date.
pub(super) async fn report(
    mut response: Response,
    target: &Target,
    now: SystemTime,
) -> (Report, Option<batch::Answer>) {
    let status = response.status;
    let pause = || retry_after(&response.headers, now);
    if response.is_relayed
        && let Some(outcome) = of_a_proxy(status, &response.headers, pause)
    {
        let answer = excerpt(response, &target.confidential).await.unwrap_or_default();
        let answer = format!("egress.proxy, or the destination behind it, answered {status}: {answer}");
        let report = Report { status: Some(status.as_u16()), ..Report::from(outcome) };
        return (report.with_answer(shortened(answer)), None);
    }
    let outcome = outcome(status, &target.dead_letter_on, pause);
    // A server may fail after it has processed the event; a client error comes before.
    let ambiguous = status.is_server_error();
    let report = Report { outcome, status: Some(status.as_u16()), answer: None, ambiguous, settled: false };
    if target.batch.is_some() && report.outcome == Outcome::Delivered {
        return match whole(&mut response).await {
            Ok(body) => {
                let report = Report { answer: kept(&response, &body, &target.confidential), ..report };
                (report, Some(batch::Answer::read(status, &response.headers, body)))
            }
            Err(problem) => {
                let unclear = problem.map_or_else(too_long, |error| failure(&error, target));
                (Report { status: report.status, ..unclear }, None)
            }
        };
    }
    let answer = if response.is_empty() { None } else { excerpt(response, &target.confidential).await };
    (Report { answer, ..report }, None)
}

/// The report for a 2xx response that is too long to read.
fn too_long() -> Report {
    let outcome = Outcome::Retry { reason: Reason::BrokenAnswer, after: None };
    Report::from(outcome)
        .with_answer(format!("the response has more than {READ_LIMIT_OF_A_BATCH} bytes"))
        .ambiguous()
}

/// Checks that the receiver can be reached, by an OPTIONS request, which changes nothing. Every HTTP response
/// passes, unless it may be the proxy's.
pub(super) async fn can_be_reached(client: &Client, target: &Target) -> Result<(), String> {
    let mut request = Request::default();
    *request.method_mut() = http::Method::OPTIONS;
    *request.uri_mut() = target.uri.clone();
    let refused = |report: Report| report.answer.unwrap_or_default();
    match client.send(request, Instant::now() + target.timeout).await {
        Ok(response) if response.is_relayed => {
            let (report, _) = report(response, target, SystemTime::UNIX_EPOCH).await;
            let is_proxy = report.outcome.reason() == Some(Reason::ProxyFailed);
            if is_proxy { Err(refused(report)) } else { Ok(()) }
        }
        Ok(_) => Ok(()),
        Err(error) => Err(refused(failure(&error, target))),
    }
}

/// The outcome for a status that a proxy may have answered instead of the destination, which cannot be told
/// apart in plain HTTP: nothing final follows from it.
fn of_a_proxy(
    status: StatusCode,
    headers: &HeaderMap,
    pause: impl FnOnce() -> Option<Duration>,
) -> Option<Outcome> {
    let signs = ["proxy-status", "proxy-authenticate", "x-squid-error"];
    let is_proxy = !status.is_success() && signs.iter().any(|name| headers.contains_key(*name));
    match status.as_u16() {
        407 => Some(Outcome::Retry { reason: Reason::ProxyFailed, after: None }),
        _ if is_proxy => Some(Outcome::Retry { reason: Reason::ProxyFailed, after: None }),
        403 | 410 => Some(Outcome::Retry { reason: Reason::ClientError, after: pause() }),
        _ => None,
    }
}

/// The outcome for a status. `pause` is called only for a retry.
pub(super) fn outcome(
    status: StatusCode,
    dead_letter_on: &[u16],
    pause: impl FnOnce() -> Option<Duration>,
) -> Outcome {
    let reason = match status.as_u16() {
        200..=299 => return Outcome::Delivered,
        410 => return Outcome::Gone,
        300..=399 => Reason::Redirect,
        429 | 503 => Reason::RateLimited,
        code @ 400..=499 if dead_letter_on.contains(&code) => {
            return Outcome::Rejected { reason: Reason::ClientError };
        }
        400..=499 => Reason::ClientError,
        500..=599 => Reason::ServerError,
        _ => Reason::BrokenAnswer,
    };
    Outcome::Retry { reason, after: pause() }
}

/// The pause of Retry-After: whole seconds or a date, the first valid one of several headers. Zero is
/// ignored.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let date = |value: &str| httpdate::parse_http_date(value).ok();
    let answered_at = headers.get(header::DATE).and_then(|value| date(value.to_str().ok()?)).unwrap_or(now);
    let pause = headers.get_all(header::RETRY_AFTER).iter().find_map(|value| {
        let text = value.to_str().ok()?.trim();
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            // A number that does not fit is still a number of seconds.
            return Some(text.parse().map_or(LONGEST_PAUSE, Duration::from_secs));
        }
        Some(date(text)?.duration_since(answered_at).unwrap_or_default())
    })?;
    // Limit it here, so that adding it to an instant cannot overflow.
    Some(pause.min(LONGEST_PAUSE)).filter(|pause| !pause.is_zero())
}

/// Reads a whole response, within the deadline of the attempt. `Err(None)` if it is too long.
async fn whole(response: &mut Response) -> Result<Vec<u8>, Option<Failure>> {
    let mut read = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Some)? {
        if read.len() + chunk.len() > READ_LIMIT_OF_A_BATCH {
            return Err(None);
        }
        read.extend_from_slice(&chunk);
    }
    Ok(read)
}

/// Reads the beginning of a response. The connection is reused only if the response was read to its end.
async fn excerpt(mut response: Response, confidential: &Redactor) -> Option<String> {
    let mut read = Vec::new();
    let until = Instant::now() + BODY_TIMEOUT;
    while let Ok(Ok(Some(chunk))) = timeout_at(until, response.chunk()).await {
        read.extend(chunk.iter().take(READ_LIMIT - read.len()));
        if read.len() == READ_LIMIT {
            break;
        }
    }
    kept(&response, &read, confidential)
}

/// The part of a body that is kept, escaped.
fn kept(response: &Response, body: &[u8], confidential: &Redactor) -> Option<String> {
    let is_problem = response
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().to_ascii_lowercase().starts_with(b"application/problem+json"));
    let body = body.get(..READ_LIMIT).unwrap_or(body);
    let problem = if is_problem { problem(body) } else { None };
    let is_cut = problem.is_none() && body.len() == READ_LIMIT;
    let text = problem.as_ref().map_or(body, String::as_bytes);
    (!text.is_empty()).then(|| escape_part(text, confidential, is_cut))
}

/// An answer that was put together, within the limit of what is kept.
pub(super) fn shortened(mut answer: String) -> String {
    answer.truncate(answer.floor_char_boundary(KEEP_LIMIT));
    answer
}

/// Title and detail of problem details (RFC 9457).
fn problem(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Problem {
        title: Option<String>,
        detail: Option<String>,
    }
    match serde_json::from_slice(body).ok()? {
        Problem { title: Some(title), detail: Some(detail) } => Some(format!("{title}: {detail}")),
        Problem { title, detail } => title.or(detail),
    }
}

/// Escapes foreign bytes for a terminal, a log and a text column: at most [`KEEP_LIMIT`] bytes, printable,
/// without secrets.
pub(super) fn escape(bytes: &[u8], confidential: &Redactor) -> String {
    escape_part(bytes, confidential, false)
}

/// Like [`escape`], also for what `is_cut`: the beginning of something longer.
fn escape_part(bytes: &[u8], confidential: &Redactor, is_cut: bool) -> String {
    let mut text = String::with_capacity(bytes.len().min(KEEP_LIMIT));
    for part in bytes.utf8_chunks() {
        text.push_str(part.valid());
        for byte in part.invalid() {
            // Secrets are valid UTF-8, so the search below still finds them.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    let text = confidential.redact(&text, is_cut);
    let mut kept = String::with_capacity(text.len().min(KEEP_LIMIT));
    for character in text.chars() {
        let start = kept.len();
        if crate::event::harmless::is_harmless(character) {
            kept.push(character);
        } else {
            kept.extend(character.escape_default());
        }
        if kept.len() > KEEP_LIMIT - '…'.len_utf8() {
            kept.truncate(start);
            kept.push('…');
            break;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(date: Option<&str>, values: &[&str]) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.extend(date.map(|date| (header::DATE, date.parse().unwrap())));
        for value in values {
            headers.append(header::RETRY_AFTER, value.parse().unwrap());
        }
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        retry_after(&headers, now).map(|pause| pause.as_secs())
    }

    #[test]
    fn retry_after_is_whole_seconds_or_a_date() {
        assert_eq!(pause(None, &["5"]), Some(5));
        assert_eq!(pause(None, &[" 120 "]), Some(120));
        assert_eq!(pause(None, &["Sun, 06 Nov 1994 08:50:07 GMT"]), Some(30));
        assert_eq!(pause(Some("Sun, 06 Nov 1994 08:50:00 GMT"), &["Sun, 06 Nov 1994 08:50:07 GMT"]), Some(7));
        assert_eq!(pause(None, &["315360000"]), Some(3600), "ten years are limited to an hour");
        assert_eq!(pause(None, &["99999999999999999999999999"]), Some(3600));
        assert_eq!(pause(None, &["Fri, 31 Dec 9999 23:59:59 GMT"]), Some(3600));
        assert_eq!(pause(None, &["soon", "7", "9"]), Some(7), "the first valid one");
    }

    #[test]
    fn any_other_retry_after_is_ignored() {
        for value in [
            "-1",
            "1e300",
            "NaN",
            "",
            "0",
            "00",
            "+5",
            "5.5",
            "5s",
            "1, 2",
            "Sun, 06 Nov 1994 08:49:07 GMT",
            "0x10",
            "٣",
            "∞",
        ] {
            assert_eq!(pause(None, &[value]), None, "{value:?}");
        }
    }

    #[test]
    fn the_status_policy_is_the_documented_one() {
        let of =
            |code| outcome(StatusCode::from_u16(code).unwrap(), &[400, 422], || Some(Duration::from_secs(9)));
        let retry = |reason| Outcome::Retry { reason, after: Some(Duration::from_secs(9)) };
        for (codes, expected) in [
            (&[200u16, 201, 202, 204, 299] as &[u16], Outcome::Delivered),
            (&[300, 301, 302, 303, 304, 307, 308], retry(Reason::Redirect)),
            (&[401, 403, 404, 408, 409, 413, 415, 425, 499], retry(Reason::ClientError)),
            (&[429, 503], retry(Reason::RateLimited)),
            (&[500, 501, 502, 504, 599], retry(Reason::ServerError)),
            (&[101, 600, 999], retry(Reason::BrokenAnswer)),
            (&[400, 422], Outcome::Rejected { reason: Reason::ClientError }),
            (&[410], Outcome::Gone),
        ] {
            for code in codes {
                assert_eq!(of(*code), expected, "{code}");
            }
        }
    }

    #[test]
    fn an_excerpt_is_printable_short_and_without_secrets() {
        let mut secret = Redactor::default();
        secret.add(&"canary".into());
        assert_eq!(
            escape(b"a\x1b[31m\0\n\xff\xc2\x9b", &Redactor::default()),
            "a\\u{1b}[31m\\u{0}\\n\\xff\\u{9b}"
        );
        assert_eq!(escape("\u{202e}evil — ok".as_bytes(), &Redactor::default()), "\\u{202e}evil — ok");
        assert_eq!(escape(b"you sent canary, canary", &secret), "you sent [redacted], [redacted]");
        for hostile in [
            vec![0u8; READ_LIMIT],
            vec![0xff; READ_LIMIT],
            "é".repeat(5000).into_bytes(),
            vec![b'a'; READ_LIMIT],
        ] {
            let kept = escape(&hostile, &Redactor::default());
            assert!(
                kept.len() <= KEEP_LIMIT
                    && kept.ends_with('…')
                    && kept.chars().all(crate::event::harmless::is_harmless),
                "{}",
                kept.len()
            );
        }
    }

    #[test]
    fn title_and_detail_of_problem_details_are_kept() {
        let both =
            br#"{"type":"about:blank","title":"Out of credit","detail":"Your balance is 30","balance":30}"#;
        assert_eq!(problem(both).as_deref(), Some("Out of credit: Your balance is 30"));
        assert_eq!(problem(br#"{"detail":"no"}"#).as_deref(), Some("no"));
        assert_eq!(problem(br#"{"title":5}"#), None);
        assert_eq!(problem(&b"[".repeat(READ_LIMIT)), None);
    }
}
