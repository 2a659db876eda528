//! What several stages work with, by purpose. A stage gets the parts it uses. The only record of an event is
//! never here, but in the database.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::{
    Settings,
    answers::Answers,
    breaker::{Breakers, Unsent},
    clock::Clock,
    dispatch::Dispatch,
    doubt::Doubts,
    due::Bounds,
    held::Leases,
    matching::FilterErrors,
    news::News,
    order::Order,
    pauses::Pauses,
    prepare::LastWarned,
    schedule::Schedule,
    settle::tallies::Tallies,
    shared::Shared,
    telemetry::Telemetry,
};
use crate::{sink::Registry, store::Store, subscription::Index};

/// The database, and what was read from it.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) telemetry: Arc<Telemetry>,
    /// The database's clock.
    pub(super) clock: Clock,
    pub(super) index: ArcSwap<Index>,
    /// Somebody asks for a reload of everything.
    pub(super) reload: ReloadAsked,
    /// What processes with live clients are to hear.
    pub(super) news: News,
    /// Limits of this relay and others of the process together.
    pub(super) shared: Option<Arc<Shared>>,
}

/// A request to read everything again, until it is done.
#[derive(Debug, Default)]
pub(super) struct ReloadAsked {
    pub(super) asked: AtomicBool,
    pub(super) news: Notify,
}

/// What may be sent now.
#[derive(Debug)]
pub(super) struct Sending {
    pub(super) dispatch: Dispatch,
    pub(super) breakers: Breakers,
    /// What other relays are to hear of the breakers.
    pub(super) news: Unsent,
    pub(super) pauses: Pauses,
    /// What destinations said of themselves and is not recorded.
    pub(super) answers: Answers,
    /// Notified when permits were returned.
    pub(super) freed: Notify,
}

/// What waits in the database, as far as this relay knows.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) schedule: Schedule,
    pub(super) bounds: Bounds,
    /// The ordered subscriptions that this relay delivers.
    pub(super) order: Order,
    /// Claims whose answer was lost.
    pub(super) doubts: Doubts,
    /// Notified when there may be past events to backfill.
    pub(super) starts: Notify,
    /// Notified when there may be replays.
    pub(super) replays: Notify,
    /// Another relay has ended.
    pub(super) relay_ended: AtomicBool,
    /// The next look is at everything, and begins at once: see [`Waiting::look_at_everything`].
    pub(super) everything_is_new: AtomicBool,
    /// Notified when the next look is to begin at once.
    pub(super) look: Notify,
    pub(super) other_relays: OtherRelays,
    /// Notified when another relay has started.
    pub(super) relay_started: Notify,
}

/// How many other relays reported lately.
#[derive(Debug)]
pub(super) struct OtherRelays(AtomicI64);

impl Default for OtherRelays {
    /// Not known before the first report.
    fn default() -> Self {
        Self(AtomicI64::new(-1))
    }
}

impl OtherRelays {
    pub(super) fn set(&self, count: i64) {
        self.0.store(count, Ordering::Release);
    }

    /// Whether it is known that there is none.
    pub(super) fn are_none(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

impl Waiting {
    /// Begins a look at everything: something may wait of which nobody notifies, because another relay has
    /// ended, a standby was promoted, or leases were ended after the clock was set back.
    pub(super) fn look_at_everything(&self) {
        self.everything_is_new.store(true, Ordering::Release);
        self.look.notify_one();
    }
}

/// What is counted or was said, by subscription or type.
#[derive(Debug, Default)]
pub(super) struct Counted {
    pub(super) tallies: Tallies,
    pub(super) filter_errors: FilterErrors,
    pub(super) last_warned: LastWarned,
}

/// All of them, to choose from.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) base: Arc<Base>,
    pub(super) sending: Arc<Sending>,
    pub(super) waiting: Arc<Waiting>,
    pub(super) counted: Arc<Counted>,
    pub(super) leases: Arc<Leases>,
    pub(super) sinks: Registry,
}

impl Parts {
    /// Parts of a relay that begins: it holds nothing and knows nothing of the database.
    pub(super) fn new(base: Arc<Base>, sinks: Registry) -> Self {
        let sending = Sending {
            dispatch: Dispatch::new(
                base.settings.permits,
                base.settings.permits_per_subscription,
                base.shared.as_ref(),
            ),
            breakers: Breakers::new(0.5 * rand::random::<f64>()),
            news: Unsent::new(),
            pauses: Pauses::default(),
            answers: Answers::default(),
            freed: Notify::new(),
        };
        Self {
            base,
            sending: Arc::new(sending),
            waiting: Arc::default(),
            counted: Arc::default(),
            leases: Arc::default(),
            sinks,
        }
    }

    /// Parts with which the relay begins anew.
    pub(super) fn anew(self) -> Self {
        self.base.index.store(Arc::default());
        Self::new(self.base, self.sinks)
    }
}
