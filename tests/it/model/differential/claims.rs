//! Claims, of all kinds of subscriptions.

use std::collections::BTreeSet;

use pgoutbox::{
    delivery::SubscriptionId,
    store::{self, BacklogClaim, Claim, Keyed, LeasedPage},
};
use rand::Rng as _;
use uuid::Uuid;

use super::{ALL, Both, Held, HeldRow, IDS, LEASE, MODEL_LEASE, ORDERED};

impl Both {
    pub(super) async fn claim(&mut self) {
        let suspects = self.random.random_bool(0.4);
        let claims: Vec<BacklogClaim> = IDS
            .into_iter()
            .map(|id| {
                // Which of several rows of one statement comes first is not the same in both.
                let of = self.model.data.backlog.values();
                let rows = of.filter(|row| row.subscription == id && (row.deaths > 0) == suspects).count();
                let wanted = if rows <= 1 {
                    self.random.random_range(0..8)
                } else {
                    ALL * usize::from(self.random.random_bool(0.8))
                };
                let own_page = self.random.random_bool(0.2);
                BacklogClaim { subscription: SubscriptionId(id), wanted, since: 0, own_page }
            })
            .collect();
        let token = self.token();
        let pages = self.store.claim_backlog(&claims, suspects, token, LEASE).await.unwrap().pages;
        let by_model = self.model.claim_backlog(&claims, suspects, token, MODEL_LEASE);
        self.hold(pages, by_model, token);
    }

    pub(super) async fn claim_rows(&mut self) {
        let room = u32::try_from(ALL).unwrap();
        let claims: Vec<Claim> = IDS
            .into_iter()
            .filter(|_| self.random.random_bool(0.7))
            .map(|id| Claim { subscription: SubscriptionId(id), room, since: None })
            .collect();
        let token = self.token();
        let rows = self.store.claim_deliveries(&claims, token, LEASE).await.unwrap();
        let by_model = self.model.claim_deliveries(&claims, token, MODEL_LEASE);
        self.hold_rows(rows, by_model, token);
    }

    fn hold_rows(&mut self, mut rows: Vec<store::Claimed>, mut by_model: Vec<store::Claimed>, token: Uuid) {
        let show = |row: &store::Claimed| {
            (
                row.subscription_id,
                row.position,
                row.attempt,
                row.unfinished,
                row.repeated,
                row.key.clone(),
                row.id,
            )
        };
        rows.sort_by_key(show);
        by_model.sort_by_key(show);
        let without_id = |rows: &[store::Claimed]| {
            rows.iter()
                .map(|row| {
                    (
                        row.subscription_id,
                        row.position,
                        row.attempt,
                        row.unfinished,
                        row.repeated,
                        row.key.clone(),
                    )
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(without_id(&rows), without_id(&by_model), "the same rows are claimed");
        for (row, model) in rows.into_iter().zip(by_model) {
            self.rows.push(HeldRow {
                row: row.id,
                model: model.id,
                token,
                subscription: row.subscription_id,
            });
        }
    }

    fn hold(&mut self, mut pages: Vec<LeasedPage>, mut by_model: Vec<LeasedPage>, token: Uuid) {
        let show = |page: &LeasedPage| {
            let entries = page.entries.iter().map(|one| (one.subscription, one.positions.to_string()));
            (entries.collect::<Vec<_>>(), page.deaths, page.alone, page.done.to_string())
        };
        pages.sort_by_key(show);
        by_model.sort_by_key(show);
        let shown = |pages: &[LeasedPage]| pages.iter().map(show).collect::<Vec<_>>();
        assert_eq!(shown(&pages), shown(&by_model), "the same pages are leased");
        for (page, model) in pages.into_iter().zip(by_model) {
            let pairs =
                page.entries.iter().flat_map(|one| one.positions.iter().map(|at| (one.subscription, at)));
            let pairs = (0..).zip(pairs).map(|(n, (to, at))| (to, at, page.done.contains(n))).collect();
            let (deaths, alone) = (page.deaths, page.alone);
            self.pages.push(Held { page: page.id, model: model.id, token, deaths, alone, pairs });
        }
    }

    pub(super) async fn claim_in_order(&mut self) {
        let relay = self.random.random_range(0..2);
        let (order, token) = (self.order[relay], self.token());
        let id = SubscriptionId(ORDERED);
        match self.random.random_range(0..8) {
            0 | 1 => {
                let acquired = self.store.acquire_order(&[id], order, LEASE).await.unwrap();
                let by_model = self.model.acquire_order(&[ORDERED], order, MODEL_LEASE);
                assert_eq!(acquired.iter().map(|id| id.0).collect::<Vec<_>>(), by_model);
            }
            2 => {
                let is_open = self.random.random_bool(0.5);
                let opened = self.store.open_order(id, order, is_open, !is_open).await.unwrap();
                let by_model = self.model.open_order(ORDERED, order, is_open);
                let show = |opened: store::Opened| {
                    let keys = opened.keys.into_iter().collect::<BTreeSet<_>>();
                    (opened.is_free, keys, opened.promoted, opened.marked)
                };
                assert_eq!(show(opened), show(by_model), "the same is open");
            }
            3 | 4 => {
                let wanted = self.random.random_range(1..10);
                let claims = [BacklogClaim { subscription: id, wanted, since: 0, own_page: false }];
                let found = self.store.claim_ordered(&claims, &[order], token, LEASE).await.unwrap();
                let by_model = self.model.claim_ordered(&claims, order, token, MODEL_LEASE);
                assert_eq!(found.stays, by_model.stays, "the same stays");
                self.hold(found.pages, by_model.pages, token);
            }
            5 | 6 => self.claim_keys(order, token).await,
            _ if self.random.random_bool(0.5) => {
                let ours = self.store.renew_order(&[id], &[order], LEASE).await.unwrap();
                let by_model = self.model.renew_order(&[ORDERED], order, MODEL_LEASE);
                assert_eq!(ours.iter().map(|id| id.0).collect::<Vec<_>>(), by_model);
            }
            _ => {
                self.store.release_order(&[id], &[order]).await.unwrap();
                self.model.release_order(&[ORDERED], order);
            }
        }
    }

    async fn claim_keys(&mut self, order: Uuid, token: Uuid) {
        let id = SubscriptionId(ORDERED);
        let room = u32::try_from(ALL).unwrap();
        let claims = [Claim { subscription: id, room, since: None }];
        let asked: Vec<_> = ["k1", "k2", "k3"]
            .into_iter()
            .filter(|_| self.random.random_bool(0.4))
            .map(|key| (id, key.to_owned()))
            .collect();
        let most = self.random.random_range(1..5);
        let keyed = self.store.claim_keyed(&claims, &asked, most, (&[order], token), LEASE).await.unwrap();
        let by_model = self.model.claim_keyed(&claims, &asked, most, (order, token), MODEL_LEASE);
        let rest = |keyed: &Keyed| {
            let without: BTreeSet<_> = keyed.without.iter().cloned().collect();
            (without, keyed.looked_at.iter().map(|(id, due)| (*id, *due)).collect::<BTreeSet<_>>())
        };
        assert_eq!(rest(&keyed), rest(&by_model), "the same keys have none");
        self.hold_rows(keyed.claimed, by_model.claimed, token);
    }
}
