//! What a relay does for its leases: it renews them, gives up those that it could not renew, and takes over
//! pages of relays that died.

use std::{collections::VecDeque, rc::Rc};

use pgoutbox::{
    Reason,
    delivery::{DeliveryId, PageId, ranges::Ranges},
    relay::decisions::left_of,
    store::{LeasedPage, PageBatch, Pair, PairRetry, PairsBack},
};
use rand::Rng as _;
use uuid::Uuid;

use super::{
    super::{
        database::{Database, NEVER, PageRow},
        defect::Defect,
        world::{LEASE, Unanswered, Who, World},
    },
    Job, PageHeld, RowHeld,
    claim::Step,
};

/// Pages that are taken over in one statement.
const TAKEN_OVER_AT_ONCE: usize = 8;

impl World {
    /// Renews what is old, and gives up what is too old.
    pub(super) fn look_at_leases(&mut self, who: Who) {
        self.look_at_order(who);
        self.give_up_overdue(who);
        self.tidy(who);
        self.renew_pages(who);
        self.renew_rows(who);
        if self.random.random_bool(0.05) {
            self.mend_order(who);
        }
        self.after_at(who, 500, move |world| world.look_at_leases(who));
    }

    fn old_pages(&mut self, who: Who) -> Vec<Rc<PageHeld>> {
        let (now, pretends) = (self.now(), self.has(Defect::LeasesNotRenewed));
        let is_old = |page: &&Rc<PageHeld>| {
            !page.lease.is_lost.get() && now - page.lease.given.get() >= LEASE * 3 / 10
        };
        let old: Vec<_> = self.memory(who).pages.values().filter(is_old).cloned().collect();
        if pretends {
            old.iter().for_each(|page| page.lease.given.set(now));
            return Vec::new();
        }
        old
    }

    fn renew_pages(&mut self, who: Who) {
        let (old, asked) = (self.old_pages(who), self.now());
        if old.is_empty() {
            return;
        }
        let ids: Vec<PageId> = old.iter().map(|page| PageId(page.id)).collect();
        let tokens: Vec<Uuid> = old.iter().map(|page| page.lease.token.get()).collect();
        self.statement(
            who,
            move |database| database.renew_pages(&ids, &tokens, LEASE),
            move |world, answer| {
                let Ok(ours) = answer else { return world.give_up_overdue(who) };
                for page in old {
                    match ours.contains(&PageId(page.id)) {
                        true => page.lease.given.set(asked),
                        false => page.lease.is_lost.set(true),
                    }
                }
                world.give_up_overdue(who);
            },
        );
    }

    fn renew_rows(&mut self, who: Who) {
        let (now, pretends) = (self.now(), self.has(Defect::LeasesNotRenewed));
        let is_old =
            |row: &&Rc<RowHeld>| !row.lease.is_lost.get() && now - row.lease.given.get() >= LEASE * 3 / 10;
        let old: Vec<_> = self.memory(who).rows.values().filter(is_old).cloned().collect();
        if pretends {
            return old.iter().for_each(|row| row.lease.given.set(now));
        }
        if old.is_empty() {
            return;
        }
        let ids: Vec<DeliveryId> = old.iter().map(|row| DeliveryId(row.id)).collect();
        let tokens: Vec<Uuid> = old.iter().map(|row| row.lease.token.get()).collect();
        self.statement(
            who,
            move |database| database.renew_leases(&ids, &tokens, LEASE),
            move |world, answer| {
                let Ok(ours) = answer else { return world.give_up_overdue(who) };
                for row in old {
                    match ours.contains(&DeliveryId(row.id)) {
                        true => row.lease.given.set(now),
                        false => row.lease.is_lost.set(true),
                    }
                }
                world.give_up_overdue(who);
            },
        );
    }

    /// Before others may take them over.
    fn give_up_overdue(&mut self, who: Who) {
        if self.has(Defect::SendsWithoutLease) {
            return;
        }
        let now = self.now();
        let memory = self.memory(who);
        let leases = memory.pages.values().map(|page| &page.lease);
        for lease in leases.chain(memory.rows.values().map(|row| &row.lease)) {
            if now - lease.given.get() >= LEASE * 2 / 3 {
                lease.is_lost.set(true);
            }
        }
        self.cut_off(who, false, Reason::LeaseLost);
        // What is left of a lost lease is forgotten here; others take it over.
        let memory = self.memory(who);
        let is_lost = |job: &Job| job.held.lease().is_lost.get();
        let (lost, kept): (VecDeque<Job>, VecDeque<Job>) =
            std::mem::take(&mut memory.ahead).into_iter().partition(is_lost);
        memory.ahead = kept;
        self.give_back(who, lost.into());
    }

    /// Gives back what waits for subscriptions that may not be sent to.
    fn tidy(&mut self, who: Who) {
        if self.has(Defect::PausedIsSent) {
            return;
        }
        let memory = self.memory(who);
        let index = &memory.index;
        let is_blocked = |job: &Job| index.get(&job.subscription).is_none_or(|one| !one.row.active);
        let (blocked, kept): (VecDeque<Job>, VecDeque<Job>) =
            std::mem::take(&mut memory.ahead).into_iter().partition(is_blocked);
        memory.ahead = kept;
        self.give_back(who, blocked.into());
    }

    pub(super) fn take_over(&mut self, who: Who, steps: VecDeque<Step>) {
        let token = self.token();
        self.statement(
            who,
            move |database| database.take_over_pages(TAKEN_OVER_AT_ONCE, token, LEASE),
            move |world, answer| match answer {
                Ok(taken) if !taken.is_empty() => world.give_up_pages(who, taken, token, steps),
                Ok(_) | Err(Unanswered) => world.next_step(who, steps),
            },
        );
    }

    /// What is left of pages goes to the backlog.
    fn give_up_pages(&mut self, who: Who, taken: Vec<LeasedPage>, token: Uuid, steps: VecDeque<Step>) {
        let mut batch = PageBatch { tokens: vec![token], ..PageBatch::default() };
        for mut page in taken {
            // If it was this relay's own, its lease has ended, and it is not continued.
            if let Some(own) = self.memory(who).pages.remove(&page.id.0) {
                own.lease.is_lost.set(true);
            }
            if self.has(Defect::TakeoverForgetsProgress) {
                page.done = Ranges::default();
            }
            let blames = !self.has(Defect::FailuresCountedInsteadOfClaims);
            let back = left_of(&page).into_iter().map(|part| match blames {
                true => part,
                false => PairsBack { deaths: 0, alone: 0, ..part },
            });
            batch.back.extend(back);
            batch.finished.push(page.id);
        }
        if self.has(Defect::TakeoverDeletesFirst) {
            let first = PageBatch {
                tokens: batch.tokens.clone(),
                finished: std::mem::take(&mut batch.finished),
                ..PageBatch::default()
            };
            self.statement(
                who,
                move |database| database.settle_pages(&first),
                move |world, _| {
                    world.statement(who, move |database| write_apart(database, &batch), |_, _| {});
                    world.next_step(who, steps);
                },
            );
            return;
        }
        self.memory(who).claims_again = true;
        self.statement(
            who,
            move |database| database.settle_pages(&batch),
            move |world, _| world.next_step(who, steps),
        );
    }
}

/// Writes what belongs to pages that are gone already, as only a defect does.
pub(super) fn write_apart(database: &mut Database, batch: &PageBatch) {
    let id = database.id();
    let (entries, done) = (Vec::new(), Ranges::default());
    let held = PageRow { token: Uuid::nil(), due: NEVER, deaths: 0, alone: 0, entries, done };
    database.data.pages.insert(id, held);
    let page = PageId(id);
    let retries = batch.retries.iter().cloned();
    let retries = retries.map(|one| PairRetry { pair: Pair { page, ..one.pair }, ..one });
    let back = batch.back.iter().cloned().map(|part| PairsBack { page, ..part });
    let (retries, back) = (retries.collect(), back.collect());
    let (finished, tokens) = (vec![page], vec![Uuid::nil()]);
    database.settle_pages(&PageBatch { finished, tokens, retries, back, ..PageBatch::default() });
}
