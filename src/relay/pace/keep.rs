//! Reserves slots, and wakes those that wait for them. A crash here costs the slots that are reserved: a
//! second of each rate at most.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::super::{
    deliver::Deliver,
    parts::{Base, Sending},
};
use crate::store::{Error, SlotsReserved, SlotsWanted};

/// Shortest time between two rounds: several deliveries begin in each.
const ROUND: Duration = Duration::from_millis(5);

type Asking<'b> = Pin<Box<dyn Future<Output = Answer> + Send + 'b>>;

/// The answer of the database, what was asked, and when.
type Answer = (Vec<SlotsWanted>, Instant, Result<Vec<SlotsReserved>, Error>);

/// Works until the relay is stopped.
pub(in crate::relay) async fn keep(
    base: Arc<Base>,
    sending: Arc<Sending>,
    deliver: Arc<Deliver>,
    shutdown: CancellationToken,
) {
    let paces = &sending.dispatch.paces;
    let mut asking: Option<Asking<'_>> = None;
    loop {
        let now = Instant::now();
        let mut woken = paces.woken(now);
        woken.extend(sending.dispatch.woken_by_ramps(now));
        if !woken.is_empty() {
            sending.dispatch.wake(&woken);
            deliver.begin();
        }
        if asking.is_none() {
            let wanted = paces.to_ask(now);
            if !wanted.is_empty() {
                let store = &base.store;
                asking = Some(Box::pin(async move {
                    let reserved = store.reserve_slots(&wanted).await;
                    (wanted, now, reserved)
                }));
            }
        }
        let next = [paces.next(), sending.dispatch.next_of_ramps()].into_iter().flatten().min();
        // What comes in between begins in one round.
        let next = next.map(|next| next.max(now + ROUND));
        tokio::select! {
            (wanted, asked, reserved) = answer(&mut asking), if asking.is_some() => {
                asking = None;
                if let Err(error) = &reserved {
                    base.telemetry.database_failed("pace", error);
                }
                paces.answered(&wanted, reserved.ok().as_deref(), asked, Instant::now());
            }
            () = paces.changed.notified() => {}
            () = sleep_until(next), if next.is_some() => {}
            () = shutdown.cancelled() => return,
        }
    }
}

async fn answer(asking: &mut Option<Asking<'_>>) -> Answer {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(then: Option<Instant>) {
    if let Some(then) = then {
        tokio::time::sleep_until(then.into()).await;
    }
}
