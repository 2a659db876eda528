//! Looks in the database for what waits there, and when the next one is.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::Work;
use crate::{
    relay::{doubt, due, takeover},
    store::Error,
};

/// How often due deliveries are looked for without a poll.
const DUE_WITHOUT_POLL: Duration = Duration::from_secs(10);
/// Shortest time until the next look when it is for the end of a page's lease, of which nobody notifies.
const LEASES_EVERY: Duration = Duration::from_secs(2);
/// Added to the end of a lease, so that it has passed by the clock of the database, too.
const MARGIN: Duration = Duration::from_millis(20);
/// How often scans for due deliveries look at everything, without their bounds.
const LOOK_AT_EVERYTHING: Duration = Duration::from_secs(60);
/// Time between looks for due deliveries when nothing has happened for a while and this relay is alone: what
/// others make due they ring for.
const RESTING: Duration = Duration::from_secs(60);
/// Shortest time without work before a relay rests. It is twice the lease at least, so that what a relay held
/// that was killed before has fallen due.
const REST_AFTER: Duration = Duration::from_secs(5);
/// A shorter poll is kept also at rest.
const SHORT_POLL: Duration = Duration::from_secs(1);

impl Work {
    /// Asks the database which subscriptions have deliveries to claim, also those that nobody has notified
    /// of, and decides when to ask again.
    pub(super) async fn look_for_due(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let is_news = self.waiting.everything_is_new.swap(false, Ordering::AcqRel)
            || self.looked_at_everything.is_none();
        let have_ended = self.leases_end.is_some_and(|then| now >= then);
        let everything = is_news
            || have_ended
            || self.looked_at_everything.is_none_or(|then| now.duration_since(then) >= LOOK_AT_EVERYTHING);
        if everything {
            self.looked_at_everything = None; // if this fails, the next look is at everything, too
            self.waiting.schedule.look_at_everything();
        }
        if is_news {
            self.waiting.bounds.forget_pages();
        }
        // Who changes a subscription and then redrives expects the change to count.
        self.reload_if_changed().await?;
        self.reload.follow_states().await?;
        doubt::resolve(&self.base, &self.waiting).await?;
        let leases = &self.claims.leases;
        takeover::take_over(&self.base, &self.sending, &self.waiting, leases, everything).await?;
        due::look_for_due(&self.base, &self.waiting, &self.sending.breakers, everything, now).await?;
        let poll = if self.may_rest() { self.poll().max(RESTING) } else { self.poll() };
        // Relays that started together should not poll together.
        let pause = poll.mul_f64(0.9 + 0.2 * rand::random::<f64>());
        self.next_poll = now + pause;
        if everything || pause > LEASES_EVERY {
            let ends = takeover::look(&self.base, &self.waiting, everything).await?;
            let looked = Instant::now();
            if let Some(ends) = ends {
                self.next_poll = self.next_poll.min(looked + LEASES_EVERY.max(ends + MARGIN));
            }
        }
        if is_news {
            self.leases_end = Some(now + self.base.settings.lease.mul_f64(1.1) + MARGIN);
        } else if have_ended {
            self.leases_end = None;
        }
        self.next_poll = self.leases_end.map_or(self.next_poll, |then| then.min(self.next_poll));
        if everything {
            self.looked_at_everything = Some(now);
        }
        Ok(())
    }

    pub(super) fn poll(&self) -> Duration {
        self.base.settings.poll.unwrap_or(DUE_WITHOUT_POLL)
    }

    /// Whether it is enough to look seldom: nothing waits, the bell is heard, and there is no other relay
    /// whose leases could end.
    pub(super) fn may_rest(&self) -> bool {
        self.armed
            && self.poll() >= SHORT_POLL
            && self.busy.elapsed() >= REST_AFTER.max(self.base.settings.lease * 2)
            && self.waiting.other_relays.are_none()
            && self.waiting.schedule.next().is_none()
            && self.waiting.schedule.count_behind() == 0
    }
}
