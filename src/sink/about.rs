//! Headers about a delivery rather than its event: the same names at webhooks and brokers. They are not
//! signed, for they may differ between attempts. Pure.

use super::Outgoing;

/// Number of this attempt, from 1. Of a batch the highest.
const ATTEMPT: &str = "pgoutbox-attempt";
/// `true` where an earlier attempt may have reached the destination; absent otherwise.
const POSSIBLE_DUPLICATE: &str = "pgoutbox-possible-duplicate";

/// Id of the replay that the delivery is part of; absent otherwise.
pub(super) const REPLAY: &str = "pgoutbox-replay";

/// The headers about the deliveries that are sent in one request or message: names in lower case, values of
/// printable ASCII.
#[must_use]
pub fn headers_about(deliveries: &[Outgoing]) -> Vec<(&'static str, String)> {
    let attempt = deliveries.iter().map(|one| one.attempt).max().unwrap_or(1);
    let is_repeated = deliveries.iter().any(|one| one.repeated);
    // Those of a batch are of one replay, or of none.
    let replay = deliveries.first().and_then(|one| one.replay);
    let all = [
        (ATTEMPT, Some(attempt.to_string())),
        (POSSIBLE_DUPLICATE, is_repeated.then(|| "true".to_owned())),
        (REPLAY, replay.map(|replay| replay.to_string())),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::Event;

    #[test]
    fn a_batch_has_its_highest_attempt_and_says_if_one_of_it_may_be_a_duplicate() {
        let first = Outgoing::new(Arc::new(Event::sample(1)), "s".into(), chrono::DateTime::UNIX_EPOCH);
        let third = Outgoing { attempt: 3, repeated: true, ..first.clone() };
        let of = |deliveries: &[Outgoing]| headers_about(deliveries);
        assert_eq!(of(std::slice::from_ref(&first)), [("pgoutbox-attempt", "1".to_owned())]);
        assert_eq!(
            of(&[third, first]),
            [("pgoutbox-attempt", "3".to_owned()), ("pgoutbox-possible-duplicate", "true".to_owned())]
        );
    }
}
