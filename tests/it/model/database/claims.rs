//! Leases: claims of rows and of the backlog, takeovers and renewals.

use std::collections::{BTreeMap, BTreeSet};

use pgoutbox::{
    delivery::{DeliveryId, PageId, SubscriptionId, ranges::Ranges},
    event::Position,
    store::{BacklogClaim, Claim, Claimed, Entry, LeasedPage},
};
use uuid::Uuid;

use super::{BacklogRow, Database, Millis, NEVER, PageRow, date, leased, without};
use crate::model::defect::Defect;

/// Rows of the backlog that a claim looks at for each subscription.
const ROWS_AT_ONCE: usize = 64;

/// What waits for somebody to claim it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Subscriptions with rows, and when the first of each is due.
    pub(crate) rows: BTreeMap<i64, Millis>,
    /// Subscriptions with a backlog, and whether a relay died that held it.
    pub(crate) backlog: BTreeSet<(i64, bool)>,
    /// Subscriptions with rows that wait for their turn.
    pub(crate) in_order: BTreeSet<i64>,
    /// Whether the lease of a page has ended.
    pub(crate) dead_pages: bool,
}

impl Database {
    /// What `find_due`, `find_backlog` and an empty takeover say.
    pub(crate) fn find(&self) -> Found {
        let mut found = Found::default();
        let never = self.data.deliveries.values().filter(|row| row.due >= NEVER);
        found.in_order = never.map(|row| row.subscription).collect();
        for row in self.data.deliveries.values().filter(|row| row.due < NEVER) {
            let first = found.rows.entry(row.subscription).or_insert(row.due);
            *first = row.due.min(*first);
        }
        for row in self.data.backlog.values() {
            found.backlog.insert((row.subscription, row.deaths > 0));
        }
        let always = self.has(Defect::TakesOverWhatIsLeased);
        found.dead_pages = self.data.pages.values().any(|page| always || page.due <= self.now);
        found
    }

    pub(super) fn claimed(&mut self, id: i64, token: Uuid, lease: Millis, is_next: bool) -> Option<Claimed> {
        let counts = !self.has(Defect::FailuresCountedInsteadOfClaims);
        let row = self.data.deliveries.get_mut(&id)?;
        if row.token.is_some() && is_next {
            row.unfinished += i32::from(counts);
            row.repeated = true;
        }
        row.token = Some(token);
        row.due = self.now + lease;
        row.attempt += 1;
        Some(Claimed {
            id: DeliveryId(id),
            subscription_id: SubscriptionId(row.subscription),
            position: Position(row.position),
            created_at: date(0),
            owed_since: row.owed_since,
            attempt: row.attempt,
            unfinished: row.unfinished,
            key: row.key.clone(),
            replay_id: None,
            repeated: row.repeated,
        })
    }

    pub(crate) fn claim_deliveries(&mut self, claims: &[Claim], token: Uuid, lease: Millis) -> Vec<Claimed> {
        self.write_of_claim();
        let mut claimed = Vec::new();
        for claim in claims.iter().filter(|claim| self.is_sent_to(claim.subscription.0, false)) {
            let of = |row: &super::DeliveryRow| row.subscription == claim.subscription.0;
            let due = self.data.deliveries.iter().filter(|(_, row)| of(row) && row.due <= self.now);
            let mut due: Vec<(Millis, i64)> = due.map(|(id, row)| (row.due, *id)).collect();
            due.sort_unstable();
            due.truncate(claim.room as usize);
            claimed.push(due);
        }
        let ids = claimed.into_iter().flatten();
        ids.filter_map(|(_, id)| self.claimed(id, token, lease, true)).collect()
    }

    pub(crate) fn claim_backlog(
        &mut self,
        claims: &[BacklogClaim],
        suspects: bool,
        token: Uuid,
        lease: Millis,
    ) -> Vec<LeasedPage> {
        self.write_of_claim();
        let mut taken: Vec<(i64, BacklogRow)> = Vec::new();
        for claim in claims {
            if !self.is_sent_to(claim.subscription.0, false) {
                continue;
            }
            let mut wanted = claim.wanted;
            let of =
                |row: &BacklogRow| row.subscription == claim.subscription.0 && (row.deaths > 0) == suspects;
            let ids: Vec<i64> =
                self.data.backlog.iter().filter(|(_, row)| of(row)).map(|(id, _)| *id).collect();
            for id in ids.into_iter().take(wanted.min(ROWS_AT_ONCE)) {
                if wanted == 0 {
                    break;
                }
                let Some(part) = self.take_of_backlog(id, wanted) else { continue };
                wanted -= part.positions.len();
                taken.push((id, part));
            }
        }
        self.page_of(taken, suspects, claims, token, lease)
    }

    /// Removes up to so many positions of a row.
    fn take_of_backlog(&mut self, id: i64, wanted: usize) -> Option<BacklogRow> {
        let row = self.data.backlog.get_mut(&id)?;
        if row.positions.len() <= wanted {
            return self.data.backlog.remove(&id);
        }
        let part = row.positions.split(wanted).into_iter().next()?;
        row.positions = without(&row.positions, &part);
        Some(BacklogRow { positions: part, ..row.clone() })
    }

    fn page_of(
        &mut self,
        mut taken: Vec<(i64, BacklogRow)>,
        suspects: bool,
        claims: &[BacklogClaim],
        token: Uuid,
        lease: Millis,
    ) -> Vec<LeasedPage> {
        taken.sort_by_key(|(id, row)| (row.subscription, *id));
        let own = |row: &BacklogRow| {
            claims.iter().any(|claim| claim.subscription.0 == row.subscription && claim.own_page)
        };
        let mut groups: BTreeMap<i64, Vec<BacklogRow>> = BTreeMap::new();
        for (id, row) in taken {
            let group = if suspects { id } else { -i64::from(own(&row)) * row.subscription };
            groups.entry(group).or_default().push(row);
        }
        groups.into_values().map(|rows| self.lease_rows(rows, token, lease)).collect()
    }

    /// A page of rows of the backlog.
    pub(super) fn lease_rows(&mut self, rows: Vec<BacklogRow>, token: Uuid, lease: Millis) -> LeasedPage {
        let row = PageRow {
            token,
            due: self.now + lease,
            deaths: rows.iter().map(|row| row.deaths).max().unwrap_or_default(),
            alone: rows.iter().map(|row| row.alone).max().unwrap_or_default(),
            entries: rows
                .into_iter()
                .map(|row| Entry {
                    subscription: SubscriptionId(row.subscription),
                    positions: row.positions,
                    owed_since: row.owed_since,
                })
                .collect(),
            done: Ranges::default(),
        };
        self.lease_page(row)
    }

    pub(crate) fn take_over_pages(&mut self, limit: usize, token: Uuid, lease: Millis) -> Vec<LeasedPage> {
        self.write();
        let (now, always) = (self.now, self.has(Defect::TakesOverWhatIsLeased));
        let dead = self.data.pages.iter_mut().filter(|(_, page)| always || page.due <= now);
        let take = |(id, page): (&i64, &mut PageRow)| {
            page.token = token;
            page.due = now + lease;
            leased(*id, page)
        };
        dead.take(limit).map(take).collect()
    }

    /// Returns the pages that are still held under these tokens.
    pub(crate) fn renew_pages(&mut self, pages: &[PageId], tokens: &[Uuid], lease: Millis) -> Vec<PageId> {
        self.write();
        let mut ours = Vec::new();
        for id in pages {
            if let Some(page) = self.data.pages.get_mut(&id.0).filter(|page| tokens.contains(&page.token)) {
                page.due = self.now + lease;
                ours.push(*id);
            }
        }
        ours
    }

    /// Returns the rows that are still held under these tokens.
    pub(crate) fn renew_leases(
        &mut self,
        rows: &[DeliveryId],
        tokens: &[Uuid],
        lease: Millis,
    ) -> Vec<DeliveryId> {
        self.write();
        let mut ours = Vec::new();
        for id in rows {
            let row = self.data.deliveries.get_mut(&id.0);
            if let Some(row) = row.filter(|row| row.token.is_some_and(|token| tokens.contains(&token))) {
                row.due = self.now + lease;
                ours.push(*id);
            }
        }
        ours
    }
}
