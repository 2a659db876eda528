//! Verdicts: `settle_pages`, `settle_parts`, and the statements that settle rows. Also what operators do with
//! dead letters.

use std::collections::BTreeSet;

use pgoutbox::{
    delivery::{DeliveryId, PageId, ranges::Ranges},
    store::{Batch, PageBatch, PairRetry},
};
use uuid::Uuid;

use super::{BacklogRow, Database, DeadLetter, DeliveryRow, Millis, NEVER};
use crate::model::defect::Defect;

impl Database {
    fn holds(&self, token: Uuid, tokens: &[Uuid]) -> bool {
        tokens.contains(&token) || self.has(Defect::NoTokenGuard)
    }

    fn due_after(&self, wait: Option<std::time::Duration>, subscription: i64) -> Millis {
        match wait {
            Some(wait) => self.now + Millis::try_from(wait.as_millis()).unwrap_or(NEVER),
            None if self.data.subscriptions.get(&subscription).is_some_and(|one| !super::is_keyed(one)) => {
                self.now
            }
            None => NEVER,
        }
    }

    /// Returns the pages that this relay still held.
    pub(crate) fn settle_pages(&mut self, batch: &PageBatch) -> Vec<PageId> {
        self.write();
        let PageBatch { progress, finished, tokens, retries, dead, back } = batch;
        let asked: BTreeSet<PageId> = progress.iter().map(|(id, _)| *id).chain(finished.clone()).collect();
        let mut held = Vec::new();
        let mut done = std::collections::BTreeMap::new();
        for id in asked {
            let Some(page) = self.data.pages.get(&id.0).filter(|page| self.holds(page.token, tokens)) else {
                continue;
            };
            done.insert(id, page.done.clone());
            held.push(id);
        }
        for id in finished.iter().filter(|id| done.contains_key(id)) {
            self.data.pages.remove(&id.0);
        }
        for (id, numbers) in progress {
            if let Some(page) = self.data.pages.get_mut(&id.0).filter(|_| done.contains_key(id)) {
                page.done = page.done.iter().chain(numbers.iter()).collect();
            }
        }
        // Pairs that were settled before are not written again.
        let is_new = |page: PageId, number: i32| {
            done.get(&page).is_some_and(|done: &Ranges| !done.contains(i64::from(number)))
        };
        for retry in retries.iter().filter(|retry| is_new(retry.pair.page, retry.pair.number)) {
            self.retry_pair(retry);
        }
        for one in dead.iter().filter(|one| is_new(one.pair.page, one.pair.number)) {
            self.bury(one.pair.subscription.0, one.pair.position.0, one.reason, one.pair.attempts);
        }
        for part in back {
            if part.numbers.iter().all(|number| is_new(part.page, i32::try_from(number).unwrap_or(0))) {
                let id = self.id();
                let subscription = part.entry.subscription.0;
                let row = BacklogRow {
                    subscription,
                    positions: part.entry.positions.clone(),
                    owed_since: part.entry.owed_since,
                    deaths: part.deaths,
                    alone: part.alone,
                    is_ordered: self.is_ordered(subscription),
                };
                self.data.backlog.insert(id, row);
            }
        }
        held
    }

    fn retry_pair(&mut self, retry: &PairRetry) {
        let subscription = retry.pair.subscription.0;
        let (id, due) = (self.id(), self.due_after(retry.wait, subscription));
        let row = DeliveryRow {
            subscription,
            position: retry.pair.position.0,
            due,
            token: None,
            attempt: retry.pair.attempts,
            unfinished: retry.unfinished,
            repeated: retry.repeated,
            key: retry.key.clone(),
            owed_since: retry.owed_since,
        };
        self.data.deliveries.insert(id, row);
    }

    fn bury(&mut self, subscription: i64, position: i64, reason: &'static str, attempts: i32) {
        if self.has(Defect::DeadLettersForgotten) || !self.data.subscriptions.contains_key(&subscription) {
            return;
        }
        let event = self.event(position).filter(|_| reason != "event_unreadable");
        let (event, key) = (event.map(|event| event.id), event.and_then(|event| event.key.clone()));
        let id = self.id();
        self.data.dead.insert(id, DeadLetter { subscription, position, reason, attempts, event, key });
    }

    fn held_row(&mut self, id: DeliveryId, tokens: &[Uuid]) -> bool {
        let token = self.data.deliveries.get(&id.0).map(|row| row.token);
        match token {
            Some(Some(token)) => self.holds(token, tokens),
            Some(None) => self.has(Defect::NoTokenGuard),
            None => false,
        }
    }

    /// Returns the rows that this relay still held.
    pub(crate) fn settle_rows(&mut self, batch: &Batch) -> Vec<DeliveryId> {
        self.write();
        let Batch { delivered, retries, dead, gone, tokens } = batch;
        let mut kept = Vec::new();
        for id in delivered {
            if self.held_row(*id, tokens) {
                self.data.deliveries.remove(&id.0);
                kept.push(*id);
            }
        }
        for retry in retries {
            if !self.held_row(retry.id, tokens) {
                continue;
            }
            let subscription = self.data.deliveries.get(&retry.id.0).map_or(0, |row| row.subscription);
            let due = self.due_after(retry.wait, subscription);
            if let Some(row) = self.data.deliveries.get_mut(&retry.id.0) {
                row.token = None;
                row.unfinished = if retry.wait.is_none() { row.unfinished } else { 0 };
                row.attempt = if retry.counts { row.attempt } else { (row.attempt - 1).max(0) };
                row.repeated |= retry.ambiguous;
                row.due = due;
            }
            kept.push(retry.id);
        }
        for one in dead {
            if !self.held_row(one.id, tokens) {
                continue;
            }
            if let Some(row) = self.data.deliveries.remove(&one.id.0) {
                self.bury(row.subscription, row.position, one.reason, row.attempt);
            }
            kept.push(one.id);
        }
        for id in gone {
            if !self.held_row(*id, tokens) {
                continue;
            }
            let now = self.now;
            if let Some(row) = self.data.deliveries.get_mut(&id.0) {
                (row.token, row.unfinished, row.due) = (None, 0, now);
            }
            kept.push(*id);
        }
        kept
    }

    /// `outbox.redrive(subscription)`.
    pub(crate) fn redrive(&mut self, subscription: i64) -> usize {
        self.write();
        let is_asked = |letter: &DeadLetter| letter.subscription == subscription && letter.event.is_some();
        let mut chosen: Vec<(i64, i64)> = self
            .data
            .dead
            .iter()
            .filter(|(_, letter)| is_asked(letter))
            .map(|(id, letter)| (letter.position, *id))
            .collect();
        chosen.sort_unstable();
        for (position, letter) in &chosen {
            let key = self.data.dead.remove(letter).and_then(|letter| letter.key);
            let key = key.filter(|_| self.is_ordered(subscription));
            let (id, now) = (self.id(), self.now);
            let row = DeliveryRow {
                subscription,
                position: *position,
                due: now,
                token: None,
                attempt: 0,
                unfinished: 0,
                repeated: false,
                key,
                owed_since: super::date(now),
            };
            self.data.deliveries.insert(id, row);
        }
        chosen.len()
    }
}
