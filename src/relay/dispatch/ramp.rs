//! How a subscription begins again after an outage: a few deliveries at once, then twice as many with each
//! quarter of a second, so that its destination is not flooded while it recovers. Pure.

use std::time::{Duration, Instant};

/// Deliveries that begin at once.
const AT_ONCE: f64 = 8.0;
/// Deliveries a second after that, at first.
const FIRST: f64 = 16.0;
/// Seconds in which the rate doubles.
const DOUBLES: f64 = 0.25;
/// After so long nothing holds back any more.
const LENGTH: Duration = Duration::from_secs(3);

/// What has begun since the outage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ramp {
    since: Instant,
    begun: u32,
    /// Something waits for it.
    pub(super) awaited: bool,
}

impl Ramp {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, begun: 0, awaited: false }
    }

    pub(super) fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LENGTH
    }

    /// How many deliveries may begin now.
    pub(super) fn ready(&self, now: Instant) -> usize {
        let doublings = now.saturating_duration_since(self.since).as_secs_f64() / DOUBLES;
        let all = AT_ONCE + steps() * (doublings.exp2() - 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let ready = (all as u32).saturating_sub(self.begun);
        ready as usize
    }

    /// When the next delivery may begin.
    pub(super) fn next(&self) -> Instant {
        let doublings = ((f64::from(self.begun) + 1.0 - AT_ONCE) / steps() + 1.0).max(1.0).log2();
        self.since + Duration::from_secs_f64(doublings * DOUBLES) + Duration::from_millis(1)
    }

    pub(super) fn begin(&mut self, count: u32) {
        self.begun = self.begun.saturating_add(count);
    }
}

/// Deliveries of the first doubling.
fn steps() -> f64 {
    FIRST * DOUBLES / std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_second_after_an_outage_is_a_hundred_deliveries_and_the_fourth_is_free() {
        let began = Instant::now();
        let mut ramp = Ramp::new(began);
        let mut now = began;
        let mut seconds = [0u32; 3];
        while !ramp.is_over(now) {
            let second = now.duration_since(began).as_secs() as usize;
            let ready = u32::try_from(ramp.ready(now)).unwrap();
            seconds[second] += ready;
            ramp.begin(ready);
            let next = ramp.next();
            assert!(next > now, "it does not spin");
            now = next;
        }
        assert!((60..=110).contains(&seconds[0]), "{seconds:?}");
        assert!(seconds[1] > 5 * seconds[0] && seconds[2] > 5 * seconds[1], "{seconds:?}");
        assert_eq!(Ramp::new(began).ready(began), 8);
    }
}
