//! What became of deliveries: the report of each attempt, also of those that were not made.

use std::time::Duration;

use super::{
    concurrency::Answer,
    dispatch::{Job, Passage},
};
use crate::{
    delivery::{Outcome, Reason},
    event::harmless,
    sink::Report,
};

/// So much of an answer is kept (bytes), whatever its sink reports.
const LONGEST_ANSWER: usize = 1_024;

/// A delivery whose attempt has ended, or that goes back unattempted.
#[derive(Debug)]
pub(super) struct Attempted {
    pub(super) job: Job,
    pub(super) report: Report,
    pub(super) took: Duration,
    /// Whether something was tried.
    pub(super) counts: bool,
    /// Whether it counts for the breaker: of a batch one does, because a batch fails once.
    pub(super) decides: bool,
    /// What is recorded of it.
    pub(super) end: End,
    /// Whether it has a permit, which comes back when its verdict is committed.
    pub(super) has_permit: bool,
}

/// What is recorded of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// What its report says.
    Reported,
    /// The subscription does not want it any more: nothing is owed.
    Unwanted,
    /// A newer event of its key supersedes it: nothing is owed.
    Superseded,
    /// It waits for its turn behind an earlier event of its key.
    Waits,
}

/// Whether the attempt was not made for want of something of this relay's own.
pub(super) fn lacks_resources(report: &Report) -> bool {
    !report.ambiguous && report.outcome.reason() == Some(Reason::NoResources)
}

/// The report of what was not attempted.
pub(super) fn before(job: Job, report: Report, counts: bool) -> Attempted {
    let (took, end) = (Duration::ZERO, End::Reported);
    Attempted { job, report, took, counts, decides: true, end, has_permit: true }
}

/// The report of what has not begun and does not begin now.
pub(super) fn unbegun(job: Job, reason: Reason) -> Attempted {
    let end = match job.passage {
        Passage::Aside => End::Waits,
        Passage::Superseded => End::Superseded,
        Passage::Free | Passage::Passed | Passage::Back => End::Reported,
    };
    let report = match end {
        End::Superseded => Outcome::Delivered.into(),
        _ => not_tried(reason),
    };
    let took = Duration::ZERO;
    Attempted { job, report, took, counts: false, decides: false, end, has_permit: false }
}

/// What an outcome says of the room at the destination.
pub(super) fn answer(outcome: &Outcome) -> Option<Answer> {
    match outcome {
        Outcome::Delivered | Outcome::Gone => Some(Answer::Success),
        Outcome::Rejected { .. } => Some(Answer::Other),
        Outcome::Retry { reason, .. } => match reason {
            Reason::RateLimited | Reason::DestinationFull => Some(Answer::Refused),
            Reason::DnsFailed
            | Reason::ConnectFailed
            | Reason::TlsFailed
            | Reason::ProxyFailed
            | Reason::ForbiddenAddress
            | Reason::Timeout
            | Reason::BrokenAnswer
            | Reason::ServerError => Some(Answer::Failed),
            Reason::LeaseLost | Reason::RelayStopped | Reason::NoResources => None,
            _ => Some(Answer::Other),
        },
    }
}

pub(super) fn all(count: usize, report: &Report) -> Vec<Report> {
    vec![report.clone(); count]
}

/// An answer as PostgreSQL can store it: at most 1 KiB, and nothing that controls a terminal. A NUL would
/// hold up every verdict of its batch.
pub(super) fn storable(answer: String) -> String {
    let mut answer = harmless::escaped(&answer);
    answer.truncate(answer.floor_char_boundary(LONGEST_ANSWER));
    answer
}

/// Makes an answer ASCII, for a database whose encoding has no room for all of it.
pub(super) fn in_ascii(answer: &mut Option<String>) {
    if let Some(text) = answer
        && !text.is_ascii()
    {
        *text = text.chars().fold(String::new(), |mut ascii, next| {
            if next.is_ascii() {
                ascii.push(next)
            } else {
                ascii.extend(next.escape_unicode())
            }
            ascii
        });
    }
}

/// An attempt that was not made.
pub(super) fn not_tried(reason: Reason) -> Report {
    Outcome::Retry { reason, after: None }.into()
}

/// An attempt that was ended from outside: the destination may have it.
pub(super) fn cut_off(reason: Reason) -> Report {
    Report { ambiguous: true, ..Outcome::Retry { reason, after: None }.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_in_ascii_shows_its_other_characters_by_number() {
        let mut answer = Some("größe \u{2026}".to_owned());
        in_ascii(&mut answer);
        assert_eq!(answer.as_deref(), Some(r"gr\u{f6}\u{df}e \u{2026}"));
    }

    #[test]
    fn an_answer_that_postgresql_would_refuse_is_made_storable() {
        assert_eq!(storable("a\0b".to_owned()), "a\\u{0}b");
        assert_eq!(storable("\u{1b}[2J\u{202e}x\ny".to_owned()), "\\u{1b}[2J\\u{202e}x\\ny");
        assert_eq!(storable("ä".repeat(2_000)).len(), LONGEST_ANSWER);
        assert_eq!(storable("short".to_owned()), "short");
    }
}
