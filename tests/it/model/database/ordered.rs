//! Ordered subscriptions: their leases, and claims in the order of positions and keys.

use std::collections::{BTreeMap, BTreeSet};

use pgoutbox::{
    delivery::SubscriptionId,
    store::{BacklogClaim, Claim, FromBacklog, Keyed, Opened},
};
use uuid::Uuid;

use super::{BacklogRow, Database, Millis, NEVER, without};
use crate::model::defect::Defect;

/// Rows of the backlog that a claim looks at.
const ROWS_AT_ONCE: usize = 64;

impl Database {
    /// The leases of ordered subscriptions.
    pub(crate) fn order_leases(&self) -> impl Iterator<Item = (i64, Uuid, Millis)> + '_ {
        self.data.order.iter().map(|(id, (token, due))| (*id, *token, *due))
    }

    /// Leases ordered subscriptions that nobody has leased.
    pub(crate) fn acquire_order(&mut self, ids: &[i64], token: Uuid, lease: Millis) -> Vec<i64> {
        self.write();
        let always = self.has(Defect::OrderWithoutLease);
        let mut acquired = Vec::new();
        for id in ids.iter().copied() {
            let is_free =
                self.is_ordered(id) && self.data.order.get(&id).is_none_or(|(_, due)| *due <= self.now);
            if is_free || always && self.is_ordered(id) {
                self.data.order.insert(id, (token, self.now + lease));
                acquired.push(id);
            }
        }
        acquired
    }

    fn holds_order(&self, id: i64, token: Uuid) -> bool {
        self.has(Defect::OrderWithoutLease)
            || self.data.order.get(&id).is_some_and(|(held, due)| *held == token && *due > self.now)
    }

    pub(crate) fn renew_order(&mut self, ids: &[i64], token: Uuid, lease: Millis) -> Vec<i64> {
        self.write();
        let mut ours = Vec::new();
        for id in ids {
            if let Some((_, due)) = self.data.order.get_mut(id).filter(|(held, _)| *held == token) {
                *due = self.now + lease;
                ours.push(*id);
            }
        }
        ours
    }

    pub(crate) fn release_order(&mut self, ids: &[i64], token: Uuid) {
        self.write();
        for id in ids {
            if let Some((_, due)) = self.data.order.get_mut(id).filter(|(held, _)| *held == token) {
                *due = self.now;
            }
        }
    }

    pub(crate) fn open_order(&mut self, id: i64, token: Uuid, is_open: bool) -> Opened {
        self.write();
        let (now, target) = (self.now, SubscriptionId(id));
        let is_paged = |page: &super::PageRow| page.entries.iter().any(|entry| entry.subscription == target);
        let is_leased = |row: &super::DeliveryRow| {
            row.subscription == id && row.token.is_some() && row.due > now && row.due < NEVER
        };
        let in_hands = self.data.pages.values().any(is_paged) || self.data.deliveries.values().any(is_leased);
        let is_free =
            self.holds_order(id, token) && (is_open || !in_hands || self.has(Defect::OrderOpenedTooEarly));
        let mut heads: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for (row_id, row) in self.data.deliveries.iter().filter(|(_, row)| row.subscription == id) {
            if let Some(key) = &row.key {
                let head = heads.entry(key.clone()).or_insert((row.position, *row_id));
                *head = (row.position, *row_id).min(*head);
            }
        }
        let mut marked = 0;
        if is_free && !is_open {
            let of = |row: &&mut BacklogRow| row.subscription == id && !row.is_ordered;
            for row in self.data.backlog.values_mut().filter(of) {
                row.is_ordered = true;
                marked += 1;
            }
        }
        let mut promoted = 0;
        for (_, head) in heads.values().filter(|_| is_free) {
            if let Some(row) = self.data.deliveries.get_mut(head).filter(|row| row.due == NEVER) {
                row.due = now;
                promoted += 1;
            }
        }
        Opened { is_free, keys: heads.into_keys().collect(), promoted, marked }
    }

    /// The first positions of the backlog of an ordered subscription.
    pub(crate) fn claim_ordered(
        &mut self,
        claims: &[BacklogClaim],
        order: Uuid,
        token: Uuid,
        lease: Millis,
    ) -> FromBacklog {
        self.write_of_claim();
        let mut found = FromBacklog::default();
        for claim in claims {
            let id = claim.subscription.0;
            if !self.holds_order(id, order) || !self.is_sent_to(id, true) {
                continue;
            }
            let mut rows: Vec<(i64, i64)> = self
                .data
                .backlog
                .iter()
                .filter(|(_, row)| row.subscription == id && row.is_ordered)
                .filter_map(|(id, row)| Some((row.positions.iter().next()?, *id)))
                .collect();
            rows.sort_unstable();
            let Some((_, first)) = rows.first().copied() else { continue };
            let is_suspect = |row: i64| self.data.backlog.get(&row).is_some_and(|row| row.deaths > 0);
            let most = claim.wanted.min(ROWS_AT_ONCE);
            let next = rows.iter().take(most).take_while(|(_, row)| is_suspect(*row) == is_suspect(first));
            let next: Vec<i64> = next.map(|(_, row)| *row).collect();
            // Nothing behind the first position of what stays is taken.
            let stays = rows.get(next.len()).map_or(i64::MAX, |(position, _)| *position);
            let mut positions: Vec<i64> = next
                .iter()
                .filter_map(|row| self.data.backlog.get(row))
                .flat_map(|row| row.positions.iter().filter(|at| *at < stays).collect::<Vec<_>>())
                .collect();
            positions.sort_unstable();
            positions.dedup();
            positions.truncate(claim.wanted);
            let Some(upto) = positions.last().copied() else {
                found.stays.insert(claim.subscription);
                continue;
            };
            let mut parts = Vec::new();
            for row_id in next {
                let Some(row) = self.data.backlog.get_mut(&row_id) else { continue };
                let part: pgoutbox::delivery::ranges::Ranges =
                    row.positions.iter().filter(|at| *at <= upto).collect();
                if part.is_empty() {
                    continue;
                }
                let left = without(&row.positions, &part);
                parts.push(BacklogRow { positions: part, ..row.clone() });
                row.positions = left;
                if row.positions.is_empty() {
                    self.data.backlog.remove(&row_id);
                }
            }
            let groups: Vec<Vec<BacklogRow>> = match parts.first().is_some_and(|part| part.deaths > 0) {
                true => parts.into_iter().map(|part| vec![part]).collect(),
                false => vec![parts],
            };
            found.pages.extend(groups.into_iter().map(|rows| self.lease_rows(rows, token, lease)));
            if self.data.backlog.values().any(|row| row.subscription == id && row.is_ordered) {
                found.stays.insert(claim.subscription);
            }
        }
        found
    }

    /// Rows of ordered subscriptions: what is due, and the next rows of the keys that are asked for.
    pub(crate) fn claim_keyed(
        &mut self,
        claims: &[Claim],
        asked: &[(SubscriptionId, String)],
        most: usize,
        (order, token): (Uuid, Uuid),
        lease: Millis,
    ) -> Keyed {
        self.write_of_claim();
        let mut keyed = Keyed::default();
        let ids: BTreeSet<SubscriptionId> = claims
            .iter()
            .map(|claim| claim.subscription)
            .chain(asked.iter().map(|(subscription, _)| *subscription))
            .collect();
        for id in ids {
            let has_suspects =
                self.data.backlog.values().any(|row| row.subscription == id.0 && row.deaths > 0);
            if has_suspects || !self.holds_order(id.0, order) || !self.is_sent_to(id.0, true) {
                continue;
            }
            let room = claims.iter().find(|claim| claim.subscription == id).map_or(0, |claim| claim.room);
            let of = self.data.deliveries.iter().filter(|(_, row)| row.subscription == id.0);
            let mut due: Vec<(Millis, i64)> =
                of.filter(|(_, row)| row.due <= self.now).map(|(id, row)| (row.due, *id)).collect();
            due.sort_unstable();
            due.truncate(room as usize);
            if claims.iter().any(|claim| claim.subscription == id) {
                keyed.looked_at.insert(id, due.len());
            }
            let key_of = |row: &i64| self.data.deliveries.get(row).and_then(|row| row.key.clone());
            let mut keys: BTreeSet<String> = due.iter().filter_map(|(_, row)| key_of(row)).collect();
            keys.extend(asked.iter().filter(|(of, _)| *of == id).map(|(_, key)| key.clone()));
            let free: Vec<i64> =
                due.iter().filter(|(_, row)| key_of(row).is_none()).map(|(_, row)| *row).collect();
            for row in free {
                keyed.claimed.extend(self.claimed(row, token, lease, true));
            }
            for key in keys {
                self.claim_key(id, &key, most, &due, asked, (token, lease), &mut keyed);
            }
        }
        keyed.claimed.sort_unstable_by_key(|row| row.position);
        keyed
    }

    #[expect(clippy::too_many_arguments, reason = "a part of one statement")]
    fn claim_key(
        &mut self,
        id: SubscriptionId,
        key: &str,
        most: usize,
        due: &[(Millis, i64)],
        asked: &[(SubscriptionId, String)],
        (token, lease): (Uuid, Millis),
        keyed: &mut Keyed,
    ) {
        let of_key = |row: &super::DeliveryRow| row.subscription == id.0 && row.key.as_deref() == Some(key);
        let mut run: Vec<(i64, i64)> = self
            .data
            .deliveries
            .iter()
            .filter(|(_, row)| of_key(row))
            .map(|(row_id, row)| (row.position, *row_id))
            .collect();
        run.sort_unstable();
        run.truncate(most);
        let now = self.now;
        let is_ready =
            |row: &i64| self.data.deliveries.get(row).is_some_and(|row| row.due <= now || row.due == NEVER);
        let taken: Vec<i64> = run.iter().map(|(_, row)| *row).take_while(|row| is_ready(row)).collect();
        if taken.is_empty() && asked.iter().any(|(of, name)| *of == id && name == key) {
            keyed.without.push((id, key.to_owned(), !run.is_empty()));
        }
        for (n, row) in taken.iter().enumerate() {
            keyed.claimed.extend(self.claimed(*row, token, lease, n == 0));
        }
        // What is due without being the first of its key waits for its turn.
        let first = run.first().map(|(_, row)| *row);
        for (_, row) in due {
            if taken.contains(row) || first == Some(*row) {
                continue;
            }
            if let Some(row) = self.data.deliveries.get_mut(row).filter(|row| row.key.as_deref() == Some(key))
            {
                (row.due, row.token) = (NEVER, None);
            }
        }
    }
}
