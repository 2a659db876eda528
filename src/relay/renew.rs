//! Renews the leases of this relay while something of them is left, and gives them up when that fails.
//!
//! A crash here costs the wait of one lease: everything is recorded in the database.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{held::Leases, lease::Lease, parts::Base};
use crate::{
    delivery::{DeliveryId, PageId},
    store::Error,
};

/// Age at which leases are renewed, or three tenths of a lease that is shorter than ten seconds.
const RENEW_AFTER: Duration = Duration::from_secs(3);
/// How often the ages of leases are checked.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Leases renewed in one statement.
const RENEW_AT_ONCE: usize = 1_000;

/// A lease that is to be renewed: whose, its token, and itself.
type Asked<'l, Id> = (Id, Uuid, &'l Lease);

/// Applies the answer to a renewal. It has the leases that are still ours, and whether each was renewed; one
/// whose row is locked is renewed later.
fn renewed<Id: Copy + Eq + Hash>(asked: &[Asked<'_, Id>], ours: &[(Id, bool)], given: Instant) {
    let ours: HashMap<Id, bool> = ours.iter().copied().collect();
    for (id, token, lease) in asked {
        match ours.get(id) {
            Some(true) => lease.renewed(*token, given),
            Some(false) => {}
            None => lease.taken(*token),
        }
    }
}

/// Renews leases until the relay has drained.
pub(super) async fn renew(base: Arc<Base>, leases: Arc<Leases>, drained: CancellationToken) {
    let length = base.settings.lease;
    let mut look = tokio::time::interval(LOOK_EVERY.min(length / 6));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = drained.cancelled() => return,
        }
        let age = RENEW_AFTER.min(length * 3 / 10);
        for part in leases.old_pages(age, Instant::now()).chunks(RENEW_AT_ONCE) {
            let asked: Vec<_> = part.iter().map(|page| (page.id, page.lease.token(), &page.lease)).collect();
            let statement =
                async |ids: &[PageId], tokens: &[Uuid]| base.store.renew_pages(ids, tokens, length).await;
            renew_part(&base, &asked, statement).await;
            leases.give_up_overdue(Instant::now(), length);
        }
        for part in leases.old_rows(age, Instant::now()).chunks(RENEW_AT_ONCE) {
            let asked: Vec<_> = part.iter().map(|row| (row.id, row.lease.token(), &row.lease)).collect();
            let statement = async |ids: &[DeliveryId], tokens: &[Uuid]| {
                base.store.renew_leases(ids, tokens, length).await
            };
            renew_part(&base, &asked, statement).await;
            leases.give_up_overdue(Instant::now(), length);
        }
        leases.give_up_overdue(Instant::now(), length);
    }
}

/// Renews these leases with one statement, which gets their ids and their tokens.
async fn renew_part<Id: Copy + Eq + Hash>(
    base: &Base,
    part: &[Asked<'_, Id>],
    statement: impl AsyncFnOnce(&[Id], &[Uuid]) -> Result<Vec<(Id, bool)>, Error>,
) {
    let ids: Vec<Id> = part.iter().map(|(id, ..)| *id).collect();
    let mut tokens: Vec<Uuid> = part.iter().map(|(_, token, _)| *token).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let asked = Instant::now();
    // Attempts must be stopped in time when a renewal takes long.
    match tokio::time::timeout(base.settings.lease / 5, statement(&ids, &tokens)).await {
        Ok(Ok(ours)) => renewed(part, &ours, asked),
        Ok(Err(error)) => base.telemetry.database_failed("renew", &error),
        Err(late) => base.telemetry.database_failed("renew", &late),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_an_older_renewal_says_nothing_of_a_newer_lease() {
        let [first, second] = [Uuid::new_v4(), Uuid::new_v4()];
        let asked = Instant::now();
        let lease = Lease::new(first, asked);
        let newer = Instant::now();
        assert!(lease.replace(&Lease::new(second, newer)));
        renewed(&[(PageId(7), first, &lease)], &[], asked);
        assert!(!lease.lost().is_cancelled());
        renewed(&[(PageId(7), first, &lease)], &[(PageId(7), true)], asked);
        assert_eq!(lease.given(), newer);
        renewed(&[(PageId(7), second, &lease)], &[], asked);
        assert!(lease.lost().is_cancelled());
        assert!(lease.still_runs(Duration::from_secs(10)) && !lease.still_runs(Duration::ZERO));
    }
}
