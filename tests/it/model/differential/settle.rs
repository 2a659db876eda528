//! Verdicts, takeovers, renewals, and leases that end.

use std::collections::BTreeMap;

use pgoutbox::{
    delivery::{DeliveryId, PageId, SubscriptionId, ranges::Ranges},
    event::Position,
    relay::decisions::left_of,
    store::{
        Batch, DeadRow, Entry, LeasedPage, PageBatch, Pair, PairDead, PairRetry, PairsBack, RetryRow, Settler,
    },
};
use rand::{Rng as _, seq::IndexedRandom as _};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::{ALL, Both, Held, LEASE, MODEL_LEASE, ORDERED, date};

impl Both {
    /// Settles some pairs of some pages; the statement is sometimes repeated, as after a lost answer, and
    /// sometimes comes too late.
    pub(super) async fn settle_some(&mut self) {
        let mut batches = [PageBatch::default(), PageBatch::default()];
        for held in &mut self.pages {
            if self.random.random_bool(0.4) {
                continue;
            }
            draw_verdicts(&mut self.random, held, &self.model, &mut batches);
        }
        self.pages.retain(|held| held.pairs.iter().any(|pair| !pair.2));
        let [batch, of_model] = batches;
        let times = if self.random.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..times {
            let mut kept = self.store.settle_pages(&batch, Settler::First).await.unwrap();
            let by_model = self.model.settle_pages(&of_model);
            kept.sort_unstable();
            assert_eq!(kept.len(), by_model.len(), "as many pages are still held");
        }
    }

    pub(super) async fn settle_some_rows(&mut self) {
        let mut batches = [Batch::default(), Batch::default()];
        let (chosen, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.rows).into_iter().partition(|_| self.random.random_bool(0.6));
        self.rows = rest;
        for held in chosen {
            let verdict = self.random.random_range(0..10);
            let wait =
                *[Some(std::time::Duration::ZERO), Some(LEASE), None].choose(&mut self.random).unwrap();
            // Only what is ordered waits for its turn.
            let wait = wait.or_else(|| (held.subscription.0 != ORDERED).then_some(LEASE));
            let (counts, ambiguous) = (self.random.random_bool(0.7), self.random.random_bool(0.3));
            for (batch, id) in batches.iter_mut().zip([held.row, held.model]) {
                batch.tokens.push(held.token);
                match verdict {
                    0..4 => batch.delivered.push(id),
                    4..8 => batch.retries.push(RetryRow { id, wait, counts, ambiguous }),
                    8 => batch.dead.push(DeadRow { id, reason: "server_error", status: None, answer: None }),
                    _ => batch.gone.push(id),
                }
            }
        }
        let [batch, of_model] = batches;
        if batch.is_empty() {
            return;
        }
        let times = if self.random.random_bool(0.2) { 2 } else { 1 };
        for _ in 0..times {
            let kept = self.store.settle_deliveries(&batch).await.unwrap();
            let by_model = self.model.settle_rows(&of_model);
            assert_eq!(kept.len(), by_model.len(), "as many rows are still held");
        }
    }

    /// The leases under one token end; who held it may die, or go on without knowing.
    pub(super) async fn expire(&mut self) {
        let tokens: Vec<Uuid> =
            self.pages.iter().map(|held| held.token).chain(self.rows.iter().map(|held| held.token)).collect();
        let Some(token) = tokens.choose(&mut self.random).copied() else { return };
        for table in ["pages", "deliveries"] {
            let end = format!(
                "update outbox.{table} set due_at = clock_timestamp() - interval '1 ms' \
                  where lease_token = $1"
            );
            sqlx::query(AssertSqlSafe(end)).bind(token).execute(&mut self.connection).await.unwrap();
        }
        let now = self.model.now;
        for page in self.model.data.pages.values_mut().filter(|page| page.token == token) {
            page.due = now;
        }
        for row in self.model.data.deliveries.values_mut().filter(|row| row.token == Some(token)) {
            row.due = now;
        }
        if self.random.random_bool(0.5) {
            self.pages.retain(|held| held.token != token);
            self.rows.retain(|held| held.token != token);
        }
    }

    pub(super) async fn take_over(&mut self) {
        let token = self.token();
        let limit = i64::try_from(ALL).unwrap();
        let mut taken = self.store.take_over_pages(PageId(0), limit, token, LEASE).await.unwrap();
        let mut by_model = self.model.take_over_pages(ALL, token, MODEL_LEASE);
        let show = |page: &LeasedPage| {
            let entries = page.entries.iter().map(|one| (one.subscription, one.positions.to_string()));
            (entries.collect::<Vec<_>>(), page.deaths, page.alone, page.done.to_string())
        };
        taken.sort_by_key(show);
        by_model.sort_by_key(show);
        let shown = |pages: &[LeasedPage]| pages.iter().map(show).collect::<Vec<_>>();
        assert_eq!(shown(&taken), shown(&by_model), "the same pages are taken over");
        if self.random.random_bool(0.2) {
            return; // it dies, too
        }
        let batch = |pages: &[LeasedPage]| PageBatch {
            tokens: vec![token],
            finished: pages.iter().map(|page| page.id).collect(),
            back: pages.iter().flat_map(left_of).collect(),
            ..PageBatch::default()
        };
        let kept = self.store.settle_pages(&batch(&taken), Settler::First).await.unwrap();
        assert_eq!(kept.len(), self.model.settle_pages(&batch(&by_model)).len());
    }

    pub(super) async fn renew(&mut self) {
        let mut tokens: Vec<Uuid> = self.pages.iter().map(|held| held.token).collect();
        tokens.extend(self.rows.iter().map(|held| held.token));
        let pages: Vec<PageId> = self.pages.iter().map(|held| held.page).collect();
        let of_model: Vec<PageId> = self.pages.iter().map(|held| held.model).collect();
        let ours = self.store.renew_pages(&pages, &tokens, LEASE).await.unwrap();
        assert!(ours.iter().all(|(_, renewed)| *renewed));
        assert_eq!(ours.len(), self.model.renew_pages(&of_model, &tokens, MODEL_LEASE).len());
        let rows: Vec<DeliveryId> = self.rows.iter().map(|held| held.row).collect();
        let of_model: Vec<DeliveryId> = self.rows.iter().map(|held| held.model).collect();
        let ours = self.store.renew_leases(&rows, &tokens, LEASE).await.unwrap();
        assert_eq!(ours.len(), self.model.renew_leases(&of_model, &tokens, MODEL_LEASE).len());
    }
}

/// Draws verdicts on some pairs of a page, for PostgreSQL and for the model.
fn draw_verdicts(
    random: &mut rand::rngs::StdRng,
    held: &mut Held,
    model: &super::Database,
    batches: &mut [PageBatch; 2],
) {
    let ids = [held.page, held.model];
    let mut now = Ranges::default();
    let mut back: BTreeMap<SubscriptionId, (Ranges, Ranges)> = BTreeMap::new();
    for (number, (subscription, position, is_settled)) in (0_i32..).zip(held.pairs.iter_mut()) {
        if *is_settled || random.random_bool(0.4) {
            continue;
        }
        *is_settled = true;
        now.insert(number);
        let verdict = random.random_range(0..12);
        let wait = *[Some(std::time::Duration::ZERO), Some(LEASE), None].choose(random).unwrap();
        let wait = wait.or_else(|| (subscription.0 != ORDERED).then_some(LEASE));
        let event = model.event(*position);
        let created_at = event.map_or(date(0), |event| event.created_at);
        let key = event.and_then(|event| event.key.clone());
        let key = key.filter(|_| subscription.0 == ORDERED);
        let wait = if key.is_none() { wait.or(Some(LEASE)) } else { wait };
        let (unfinished, repeated) = (random.random_range(0..3), random.random_bool(0.3));
        if verdict >= 10 {
            let (numbers, positions) = back.entry(*subscription).or_default();
            numbers.insert(number);
            positions.insert(*position);
        }
        for (batch, page) in batches.iter_mut().zip(ids) {
            let (subscription, position) = (*subscription, Position(*position));
            let pair = Pair { page, number, subscription, position, created_at, attempts: 1 };
            match verdict {
                6..9 => batch.retries.push(PairRetry {
                    pair,
                    owed_since: date(0),
                    wait,
                    unfinished,
                    key: key.clone(),
                    repeated,
                }),
                9 => batch.dead.push(PairDead { pair, reason: "refused", status: None, answer: None }),
                _ => {}
            }
        }
    }
    if now.is_empty() {
        return;
    }
    let is_finished = held.pairs.iter().all(|pair| pair.2);
    for (batch, page) in batches.iter_mut().zip(ids) {
        for (subscription, (numbers, positions)) in &back {
            let entry =
                Entry { subscription: *subscription, positions: positions.clone(), owed_since: date(0) };
            let (deaths, alone) = (held.deaths, held.alone);
            let span = (date(0), date(4_000_000_000_000));
            batch.back.push(PairsBack { page, numbers: numbers.clone(), entry, span, deaths, alone });
        }
        match is_finished {
            true => batch.finished.push(page),
            false => batch.progress.push((page, now.clone())),
        }
        batch.tokens.push(held.token);
    }
}
