//! Takes over pages of relays that died: what is left of them goes to the backlog. A crash here costs the
//! wait of one lease.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::{
    held::{Holding, Leases},
    hints,
    lease::Lease,
    parts::{Base, Sending, Waiting},
};
use crate::{
    delivery::{PageId, ranges::Ranges},
    store::{Entry, Error, LeasedPage, PageBatch, PairsBack, Settler},
};

/// Pages in one statement.
const TAKEN_OVER_AT_ONCE: i64 = 8;
/// Pages may become visible in another order than their numbers were drawn, within this distance.
const LATE_PAGES: i64 = 2_000;
/// Deliveries in one part after the first death. After the second each is alone.
const SUSPECTS_TOGETHER: usize = 16;

/// Moves what is left of pages whose relay died to the backlog. It is not known what was in flight, so all of
/// it is suspect and goes in parts that get smaller with each death. An event that kills its relay is alone
/// after two deaths, and becomes a dead letter after the next.
pub(super) async fn take_over(
    base: &Base,
    sending: &Sending,
    waiting: &Waiting,
    leases: &Leases,
    everything: bool,
) -> Result<(), Error> {
    let since = since(waiting, everything);
    loop {
        let token = Uuid::new_v4();
        let began = Instant::now();
        let taken = base.store.take_over_pages(since, TAKEN_OVER_AT_ONCE, token, base.settings.lease).await?;
        if taken.is_empty() {
            return Ok(());
        }
        let mut batch = PageBatch { tokens: vec![token], ..PageBatch::default() };
        let mut pairs = 0;
        for page in &taken {
            let back = match leases.goes_on(page.id, &Lease::new(token, began)) {
                // Ours, and its lease ended because somebody had locked the row.
                Holding::GoesOn => continue,
                Holding::GivenUp => all_of(page),
                Holding::Nothing => left_of(page),
            };
            pairs += back.iter().map(|part| part.entry.positions.len()).sum::<usize>();
            for part in &back {
                waiting.schedule.hold_back(part.entry.subscription, part.deaths > 0);
            }
            batch.back.extend(back);
            batch.finished.push(page.id);
        }
        if !batch.is_empty() {
            base.store.settle_pages(&batch, Settler::First).await?;
            base.telemetry.taken_over(batch.finished.len(), pairs);
            for (place, is_suspect) in [(hints::Place::Backlog, false), (hints::Place::Suspects, true)] {
                let parts = batch.back.iter().filter(|part| (part.deaths > 0) == is_suspect);
                let subscriptions = parts.map(|part| part.entry.subscription);
                let elsewhere = hints::elsewhere(base, sending, waiting, subscriptions);
                hints::tell(base, place, &elsewhere).await;
            }
        }
        if taken.len() < usize::try_from(TAKEN_OVER_AT_ONCE).unwrap_or(usize::MAX) {
            return Ok(());
        }
    }
}

/// In how long the first lease of a page ends, unless it is renewed. Zero: it has just ended, or somebody has
/// locked the page. After a look at everything the next looks begin at the pages that are left.
pub(super) async fn look(
    base: &Base,
    waiting: &Waiting,
    everything: bool,
) -> Result<Option<Duration>, Error> {
    let Some((first, ends)) = base.store.look_at_pages(since(waiting, everything)).await? else {
        return Ok(None);
    };
    if everything {
        waiting.bounds.pages.store(first.0 - LATE_PAGES, Ordering::Release);
    }
    Ok(Some(ends))
}

fn since(waiting: &Waiting, everything: bool) -> PageId {
    PageId(if everything { 0 } else { waiting.bounds.pages.load(Ordering::Acquire) })
}

/// The parts in which a page goes to the backlog when its relay has died.
pub fn left_of(page: &LeasedPage) -> Vec<PairsBack> {
    let pairs: usize = page.entries.iter().map(|entry| entry.positions.len()).sum();
    let deaths = page.deaths.saturating_add(1);
    let alone = page.alone.saturating_add(i16::from(pairs == 1));
    let together = if deaths <= 1 { SUSPECTS_TOGETHER } else { 1 };
    parts(page, (deaths, alone), together)
}

/// The parts in which a page goes to the backlog when no relay has died: one for each subscription, unless
/// they are suspects already.
pub(super) fn all_of(page: &LeasedPage) -> Vec<PairsBack> {
    let together = match page.deaths {
        ..=0 => usize::MAX,
        1 => SUSPECTS_TOGETHER,
        2.. => 1,
    };
    parts(page, (page.deaths, page.alone), together)
}

/// What is not settled of a page, in parts of at most so many pairs of one subscription.
fn parts(page: &LeasedPage, (deaths, alone): (i16, i16), together: usize) -> Vec<PairsBack> {
    let mut parts = Vec::new();
    let mut number = 0;
    for entry in &page.entries {
        let (mut positions, mut numbers) = (Ranges::default(), Ranges::default());
        let mut flush = |positions: &mut Ranges, numbers: &mut Ranges| {
            let (positions, numbers) = (std::mem::take(positions), std::mem::take(numbers));
            if !positions.is_empty() {
                let entry = Entry { positions, ..entry.clone() };
                parts.push(PairsBack { page: page.id, numbers, entry, span: page.span, deaths, alone });
            }
        };
        for position in entry.positions.iter() {
            if !page.done.contains(number) {
                positions.insert(position);
                numbers.insert(number);
                if positions.len() >= together {
                    flush(&mut positions, &mut numbers);
                }
            }
            number += 1;
        }
        flush(&mut positions, &mut numbers);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::SubscriptionId;

    fn page(deaths: i16, alone: i16, positions: &str, done: &str) -> LeasedPage {
        let entry = Entry {
            subscription: SubscriptionId(1),
            positions: positions.parse().unwrap(),
            owed_since: chrono::DateTime::UNIX_EPOCH,
        };
        let span = (chrono::DateTime::UNIX_EPOCH, chrono::DateTime::UNIX_EPOCH);
        LeasedPage { id: PageId(7), deaths, alone, span, entries: vec![entry], done: done.parse().unwrap() }
    }

    #[test]
    fn what_a_relay_died_with_travels_in_smaller_parts_with_each_death() {
        let parts = left_of(&page(0, 0, "{[100,140)}", "{[0,4)}"));
        assert_eq!(parts.iter().map(|part| part.entry.positions.len()).collect::<Vec<_>>(), [16, 16, 4]);
        assert_eq!(parts[0].numbers.to_string(), "{[4,20)}");
        assert_eq!(parts[0].entry.positions.to_string(), "{[104,120)}");
        assert!(parts.iter().all(|part| (part.deaths, part.alone) == (1, 0)));
        let parts = left_of(&page(1, 0, "{[104,120)}", "{}"));
        assert_eq!(parts.len(), 16);
        assert!(parts.iter().all(|part| (part.deaths, part.alone, part.entry.positions.len()) == (2, 0, 1)));
        let parts = left_of(&page(2, 0, "{[105,106)}", "{}"));
        assert_eq!((parts.len(), parts[0].deaths, parts[0].alone), (1, 3, 1));
    }

    #[test]
    fn what_a_relay_gives_up_alive_is_blamed_on_nobody() {
        let parts = all_of(&page(0, 0, "{[100,140)}", "{[0,4)}"));
        assert_eq!((parts.len(), parts[0].deaths, parts[0].alone), (1, 0, 0));
        assert_eq!(parts[0].entry.positions.to_string(), "{[104,140)}");
        let parts = all_of(&page(2, 1, "{[104,107)}", "{}"));
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| (part.deaths, part.alone) == (2, 1)));
    }

    #[test]
    fn what_is_settled_is_not_owed_again() {
        assert!(left_of(&page(0, 0, "{[1,3),[5,6)}", "{[0,3)}")).is_empty());
        let parts = left_of(&page(0, 0, "{[1,3),[5,6)}", "{[1,2)}"));
        assert_eq!(parts[0].entry.positions.to_string(), "{[1,2),[5,6)}");
    }
}
