//! Which relay delivers an ordered subscription: one at a time, under a lease. Another goes on when the lease
//! has ended and nothing of the subscription is in anybody's hands.
//!
//! A crash here costs the wait of one lease.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    deliver::Deliver,
    parts::{Base, Sending, Waiting},
    schedule::Schedule,
};
use crate::{
    delivery::{Reason, SubscriptionId},
    store::Error,
    subscription::Subscription,
};

/// Age at which leases are renewed, or three tenths of a lease that is shorter than ten seconds.
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// How often leases are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a relay asks for a subscription that another delivers.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Subscriptions whose rows are looked at between two renewals.
const MENDED_AT_ONCE: usize = 8;
/// How often a relay asks whether others still hold something of a subscription that it has leased.
const OPEN_EVERY: Duration = Duration::from_millis(100);
/// How often the first row of each key is made due, should nothing else have done it: an operator may have
/// cancelled the one before.
const MEND_EVERY: Duration = Duration::from_secs(10);
/// So long after it began to deliver a subscription, a relay marks rows of the backlog that were written by a
/// statement which knew nothing of the order. No statement takes so long.
const FRESH: Duration = Duration::from_secs(60);

/// The ordered subscriptions of a relay.
#[derive(Debug, Default)]
pub(super) struct Order {
    leased: Mutex<HashMap<SubscriptionId, Leased>>,
}

/// An ordered subscription, as far as this relay knows.
#[derive(Debug, Clone, Copy)]
struct Leased {
    /// The token of its lease, fresh each time it is leased: a statement of an earlier lease that reaches the
    /// database late changes nothing.
    token: Uuid,
    /// When the lease was last given or renewed; `None`: it is not this relay's.
    given: Option<Instant>,
    /// When to ask next.
    ask_at: Instant,
    mend_at: Instant,
    /// When this relay began to deliver it.
    opened: Option<Instant>,
}

impl Order {
    /// The tokens under which these are leased.
    pub(super) fn tokens(&self, ids: impl IntoIterator<Item = SubscriptionId>) -> Vec<Uuid> {
        let leased = self.leased();
        let mut tokens: Vec<Uuid> =
            ids.into_iter().filter_map(|id| leased.get(&id)).map(|one| one.token).collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    fn leased(&self) -> std::sync::MutexGuard<'_, HashMap<SubscriptionId, Leased>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leases and opens an ordered subscription, if it can: then this relay may deliver it. If not, `Err` has
    /// the time to ask again.
    pub(super) async fn begin(
        &self,
        base: &Base,
        sending: &Sending,
        schedule: &Schedule,
        subscription: &Subscription,
    ) -> Result<Result<(), Instant>, Error> {
        let id = subscription.row.id;
        let now = Instant::now();
        let known = self.leased().get(&id).copied();
        if let Some(known) = known.filter(|known| known.ask_at > now) {
            return Ok(Err(known.ask_at));
        }
        let later = |leased: Leased, wait: Duration| {
            let ask_at = now + wait;
            self.leased().insert(id, Leased { ask_at, mend_at: now + MEND_EVERY, ..leased });
            Ok(Err(ask_at))
        };
        let leased = if let Some(known) = known.filter(|known| known.given.is_some()) {
            known
        } else {
            // All that may be asked for, in one statement.
            let index = base.index.load_full();
            let may_send = |id| index.get(id).is_some_and(|one| one.is_ordered() && one.may_send());
            let asked = self.to_ask(id, now, may_send);
            let token = Uuid::new_v4();
            let acquired = base.store.acquire_order(&asked, token, base.settings.lease).await?;
            self.asked(&asked, &acquired, token, now);
            acquired.iter().for_each(|one| schedule.note(*one, now));
            if !acquired.contains(&id) {
                return Ok(Err(now + ASK_EVERY));
            }
            Leased { token, given: Some(now), ask_at: now, mend_at: now, opened: None }
        };
        // What this relay still has of it must have ended, too.
        if !sending.dispatch.has_no_gate(id) {
            return later(leased, OPEN_EVERY);
        }
        let opened = base.store.open_order(id, leased.token, false, true).await?;
        if !opened.is_free {
            return later(leased, OPEN_EVERY);
        }
        sending.dispatch.open_gate(subscription, opened.keys);
        let opened = Some(now);
        self.leased().insert(id, Leased { ask_at: now, mend_at: now + MEND_EVERY, opened, ..leased });
        Ok(Ok(()))
    }

    /// This subscription, and the others that may be asked for now.
    fn to_ask(
        &self,
        id: SubscriptionId,
        now: Instant,
        may_send: impl Fn(SubscriptionId) -> bool,
    ) -> Vec<SubscriptionId> {
        let leased = self.leased();
        let is_due = |one: &Leased| one.given.is_none() && one.ask_at <= now;
        let others = leased.iter().filter(|(_, one)| is_due(one)).map(|(other, _)| *other);
        std::iter::once(id).chain(others.filter(|other| *other != id && may_send(*other))).collect()
    }

    fn asked(&self, asked: &[SubscriptionId], acquired: &[SubscriptionId], token: Uuid, now: Instant) {
        let mut leased = self.leased();
        for id in asked {
            let given = acquired.contains(id).then_some(now);
            let ask_at = if given.is_some() { now } else { now + ASK_EVERY };
            leased.insert(*id, Leased { token, given, ask_at, mend_at: now + MEND_EVERY, opened: None });
        }
    }

    /// This relay must not deliver these any more before it has leased them anew.
    pub(super) fn give_up(&self, ids: impl IntoIterator<Item = SubscriptionId>, now: Instant) {
        let mut leased = self.leased();
        for id in ids {
            if let Some(leased) = leased.get_mut(&id) {
                (leased.given, leased.ask_at) = (None, now);
            }
        }
    }

    /// Whether a lease is given. What is not opened is asked for again.
    pub(super) fn is_leased(&self, id: SubscriptionId) -> bool {
        self.leased().get(&id).is_some_and(|leased| leased.given.is_some())
    }

    /// Whether this relay has begun to deliver it so lately that a statement may be under way which knows
    /// nothing of its order.
    fn is_fresh(&self, id: SubscriptionId, now: Instant) -> bool {
        let opened = self.leased().get(&id).and_then(|leased| leased.opened);
        opened.is_some_and(|opened| now.duration_since(opened) < FRESH)
    }

    /// Applies the answer to a renewal under these tokens.
    fn renewed(&self, asked: &[SubscriptionId], tokens: &[Uuid], ours: &[SubscriptionId], given: Instant) {
        let mut leased = self.leased();
        for id in asked {
            // It may have been given up meanwhile, or leased anew.
            if let Some(leased) = leased.get_mut(id).filter(|one| tokens.contains(&one.token))
                && leased.given.is_some()
            {
                leased.given = ours.contains(id).then_some(given);
            }
        }
    }

    /// The leases that are at least so old.
    fn old(&self, age: Duration, now: Instant) -> Vec<SubscriptionId> {
        let is_old = |leased: &Leased| leased.given.is_some_and(|given| now.duration_since(given) >= age);
        self.leased().iter().filter(|(_, leased)| is_old(leased)).map(|(id, _)| *id).collect()
    }

    /// Subscriptions whose rows are to be looked at now.
    fn to_mend(&self, now: Instant) -> Vec<SubscriptionId> {
        let mut leased = self.leased();
        let is_due = |leased: &Leased| leased.given.is_some() && leased.mend_at <= now;
        let mut due: Vec<(&SubscriptionId, &mut Leased)> =
            leased.iter_mut().filter(|(_, leased)| is_due(leased)).collect();
        due.sort_by_key(|(_, leased)| leased.mend_at);
        due.truncate(MENDED_AT_ONCE);
        due.into_iter()
            .map(|(id, leased)| {
                leased.mend_at = now + MEND_EVERY;
                *id
            })
            .collect()
    }

    fn known(&self) -> Vec<SubscriptionId> {
        self.leased().keys().copied().collect()
    }

    fn forget(&self, id: SubscriptionId) {
        self.leased().remove(&id);
    }
}

/// Renews the leases of ordered subscriptions until the relay has drained, and then ends them.
pub(super) async fn keep(
    base: Arc<Base>,
    sending: Arc<Sending>,
    waiting: Arc<Waiting>,
    deliver: std::sync::Weak<Deliver>,
    drained: CancellationToken,
) {
    let order = &waiting.order;
    let length = base.settings.lease;
    let mut look = tokio::time::interval(LOOK_EVERY.min(length / 6));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut asked_at = Instant::now();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = drained.cancelled() => break,
        }
        let old = order.old(RENEW_AFTER.min(length * 3 / 10), Instant::now());
        if !old.is_empty() {
            let asked = Instant::now();
            let tokens = order.tokens(old.iter().copied());
            let renewing = base.store.renew_order(&old, &tokens, length);
            match tokio::time::timeout(length / 5, renewing).await {
                Ok(Ok(ours)) => order.renewed(&old, &tokens, &ours, asked),
                Ok(Err(error)) => base.telemetry.database_failed("renew", &error),
                Err(late) => base.telemetry.database_failed("renew", &late),
            }
        }
        // Before another relay may take it over.
        let overdue = order.old(length * 2 / 3, Instant::now());
        order.give_up(overdue, Instant::now());
        let index = base.index.load_full();
        let (mut back, mut unfit, mut unfit_tokens) = (Vec::new(), Vec::new(), Vec::new());
        for id in order.known() {
            // Another relay may be able to deliver what this one cannot.
            let fits = index.get(id).is_some_and(|one| one.is_ordered() && one.may_send());
            if !fits || !order.is_leased(id) {
                back.extend(sending.dispatch.close_gate(id).0);
            }
            if !fits && sending.dispatch.has_no_gate(id) {
                unfit.push(id);
                unfit_tokens.extend(order.tokens([id]));
                order.forget(id);
            }
        }
        if !unfit.is_empty()
            && let Err(error) = base.store.release_order(&unfit, &unfit_tokens).await
        {
            base.telemetry.database_failed("renew", &error);
        }
        // Whatever became of earlier questions: what nobody delivers is asked for again.
        if asked_at.elapsed() >= length / 3 {
            asked_at = Instant::now();
            for one in index.iter().filter(|one| one.is_ordered() && one.may_send()) {
                if !sending.dispatch.is_gate_open(one.row.id) {
                    waiting.schedule.note(one.row.id, asked_at);
                }
            }
        }
        if let Some(deliver) = deliver.upgrade() {
            deliver.give_back(back, Reason::LeaseLost).await;
        }
        for id in order.to_mend(Instant::now()) {
            if !sending.dispatch.is_gate_open(id) {
                continue;
            }
            let Some(token) = order.tokens([id]).pop() else { continue };
            let marks = order.is_fresh(id, Instant::now());
            match tokio::time::timeout(length / 5, base.store.open_order(id, token, true, marks)).await {
                Ok(Ok(opened)) => {
                    if opened.promoted > 0 {
                        waiting.schedule.fall_behind(id);
                    }
                    if opened.marked > 0 {
                        waiting.schedule.hold_back(id, false);
                    }
                }
                Ok(Err(error)) => base.telemetry.database_failed("renew", &error),
                Err(late) => base.telemetry.database_failed("renew", &late),
            }
        }
    }
    let leased = order.old(Duration::ZERO, Instant::now());
    if !leased.is_empty()
        && let Err(error) = base.store.release_order(&leased, &order.tokens(leased.iter().copied())).await
    {
        base.telemetry.database_failed("renew", &error);
    }
}
