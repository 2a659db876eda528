//! How permits and the leased ahead are shared among subscriptions. Pure functions of numbers.

/// Deliveries leased ahead, as a multiple of the permits.
const AHEAD: u32 = 4;
/// Deliveries leased ahead that are always allowed.
const AHEAD_AT_LEAST: usize = 1_024;
/// Events leased ahead (bytes).
const AHEAD_BYTES: usize = 48 * 1024 * 1024;
/// Deliveries in flight, and deliveries leased ahead, that a subscription may have whatever the others have.
pub(super) const HANDFUL: usize = 8;

/// The limits of a relay.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Deliveries in flight or unsettled.
    pub(super) permits: u32,
    /// Deliveries of one subscription in flight.
    pub(super) per_subscription: u32,
    /// Deliveries leased ahead. Because each subscription has its share, there may be up to twice as many.
    pub(super) most_ahead: usize,
    /// Events leased ahead (bytes).
    pub(super) ahead_bytes: usize,
}

/// What a subscription has and what it may have by itself, when more is leased for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wants {
    /// Leased ahead for it.
    pub(super) mine: usize,
    /// What it may have leased ahead, by what it has earned.
    pub(super) most: usize,
    /// Whether it has answered lately.
    pub(super) is_known: bool,
}

/// What all subscriptions have together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// Deliveries leased to this relay that have not begun.
    pub(super) ahead: usize,
    /// The same in bytes.
    pub(super) ahead_bytes: usize,
    /// Subscriptions that share the relay; at least 1.
    pub(super) sharers: usize,
}

impl Limits {
    pub(super) fn new(permits: u32, per_subscription: u32) -> Self {
        Self {
            permits,
            per_subscription: per_subscription.min(permits),
            most_ahead: AHEAD_AT_LEAST.max(permits.saturating_mul(AHEAD) as usize),
            ahead_bytes: AHEAD_BYTES,
        }
    }

    /// Free permits for a subscription that has answered lately and has so many in flight. With a handful in
    /// flight it leaves the last quarter of the permits to others.
    pub(super) fn for_known(self, free: u32, in_flight: u32, is_alone: bool) -> u32 {
        let reserve = match in_flight as usize {
            _ if is_alone => 0,
            0..2 => 0,
            2..HANDFUL => self.permits / 16,
            _ => self.permits / 4,
        };
        free.saturating_sub(reserve)
    }

    /// Free permits for a subscription that has not answered lately: a handful or a batch, fewer the more of
    /// such deliveries are in flight (`unproven`), and all together half of the permits.
    pub(super) fn for_unknown(
        self,
        free: u32,
        in_flight: u32,
        batch: Option<u32>,
        unproven: u32,
        is_alone: bool,
    ) -> u32 {
        if is_alone {
            return free;
        }
        let mine = match batch {
            Some(batch) => batch,
            None if unproven < self.permits / 8 => 8,
            None if unproven < self.permits / 4 => 4,
            None => 1,
        };
        let left = match in_flight {
            0 if self.permits < 8 => free,
            // The first one may be in the other half, but not in the last quarter.
            0 => (self.permits * 3 / 4).saturating_sub(unproven),
            _ => (self.permits / 2).max(1).saturating_sub(unproven),
        };
        mine.saturating_sub(in_flight).min(left).min(free)
    }

    /// How many more may be leased ahead for a subscription.
    pub(super) fn ahead(self, wants: Wants, taken: Taken) -> usize {
        let share = self.most_ahead / taken.sharers;
        let handful = if wants.is_known || taken.ahead < self.most_ahead {
            HANDFUL.min(wants.most).min(share.max(1)).saturating_sub(wants.mine)
        } else {
            0
        };
        if taken.ahead_bytes >= self.ahead_bytes {
            return handful.min(1);
        }
        let fair = share.saturating_sub(wants.mine);
        let reserve = if taken.sharers > 1 { self.most_ahead / 4 } else { 0 };
        let free = self.most_ahead.saturating_sub(taken.ahead + reserve);
        wants.most.saturating_sub(wants.mine).min(fair.max(free)).max(handful)
    }

    /// Whether no more may be leased ahead for any subscription.
    pub(super) fn is_full(self, ahead: usize, ahead_bytes: usize) -> bool {
        ahead >= self.most_ahead * 2 || ahead_bytes >= self.ahead_bytes
    }
}

/// Of so many deliveries in flight that a subscription may have, those that replays leave to live events: a
/// quarter, but none of the only one.
pub(super) fn for_live_events(width: u32) -> u32 {
    width.div_ceil(4).min(width - width.min(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits =
        Limits { permits: 1_024, per_subscription: 512, most_ahead: 4_096, ahead_bytes: AHEAD_BYTES };

    /// Begins for silent subscriptions in turn until none may begin more. Returns all that are in flight.
    fn silent(subscriptions: usize) -> u32 {
        let mut in_flight = vec![0u32; subscriptions];
        loop {
            let mut began = false;
            for at in 0..subscriptions {
                let unproven = in_flight.iter().sum::<u32>();
                let free = LIMITS.permits - unproven;
                if LIMITS.for_unknown(free, in_flight[at], None, unproven, false) > 0 {
                    in_flight[at] += 1;
                    began = true;
                }
            }
            if !began {
                return in_flight.iter().sum();
            }
        }
    }

    #[test]
    fn subscriptions_that_do_not_answer_leave_a_quarter_of_the_permits_however_many_they_are() {
        assert!(silent(3) <= 24, "a handful each");
        assert!(silent(300) <= 512, "half together");
        assert!(silent(5_000) <= 768, "one each, in three quarters");
    }

    #[test]
    fn a_subscription_that_answers_leaves_room_for_one_that_has_nothing_in_flight() {
        assert_eq!(LIMITS.for_known(1_024, 500, false), 768);
        assert_eq!(LIMITS.for_known(200, 500, false), 0);
        assert_eq!(LIMITS.for_known(200, 0, false), 200);
        assert_eq!(LIMITS.for_known(1, 0, false), 1);
        assert_eq!(LIMITS.for_known(200, 500, true), 200, "without others nothing is left free");
    }

    #[test]
    fn what_is_leased_ahead_has_a_limit_for_any_number_of_subscriptions() {
        for sharers in [1, 2, 300, 2_000, 10_000] {
            let mut ahead = 0;
            let mut mine = vec![0; sharers];
            for _ in 0..4 {
                for mine in &mut mine {
                    let wants = Wants { mine: *mine, most: 256, is_known: false };
                    let more = LIMITS.ahead(wants, Taken { ahead, ahead_bytes: 0, sharers });
                    *mine += more;
                    ahead += more;
                }
            }
            assert!(ahead <= LIMITS.most_ahead * 2, "{ahead} with {sharers}");
            assert!(ahead >= 256, "{ahead} with {sharers}");
        }
    }

    #[test]
    fn a_replay_leaves_room_to_live_events_and_always_has_some_itself() {
        for (width, left) in [(1, 0), (2, 1), (4, 1), (5, 2), (8, 2), (512, 128)] {
            assert_eq!(for_live_events(width), left, "of {width}");
        }
    }

    #[test]
    fn one_event_at_a_time_is_leased_when_the_bytes_are_used_up() {
        let taken = Taken { ahead: 100, ahead_bytes: AHEAD_BYTES, sharers: 2 };
        assert_eq!(LIMITS.ahead(Wants { mine: 0, most: 256, is_known: true }, taken), 1);
        assert!(LIMITS.is_full(100, AHEAD_BYTES));
    }
}
