//! `demo` until Ctrl-C: the shop publishes orders, the warehouse is down from time to time, and the screen
//! shows it.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    screen::{Picture, Screen},
    stage::Stage,
};

const ORDER_EVERY: Duration = Duration::from_millis(300);
const DRAW_EVERY: Duration = Duration::from_millis(250);
/// Interval of lines without a terminal.
const LINE_EVERY: Duration = Duration::from_secs(2);
/// Length of a round, in seconds.
const ROUND: u64 = 25;
/// Second of a round from which on the warehouse is down.
const DOWN_FROM: u64 = 17;
/// Orders between two refunds.
const REFUND_EVERY: u64 = 25;

/// Runs until it is dropped or a part of the demo fails.
pub(super) async fn play(stage: &mut Stage) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut screen = Screen::open();
    let mut orders = interval(ORDER_EVERY);
    let mut pictures = interval(if screen.is_terminal() { DRAW_EVERY } else { LINE_EVERY });
    orders.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pictures.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut number = 0;
    loop {
        let seconds = started.elapsed().as_secs();
        let warehouse_down = seconds % ROUND >= DOWN_FROM;
        tokio::select! {
            _ = orders.tick() => {
                number += 1;
                stage.set_warehouse_down(warehouse_down);
                let mut done = vec![stage.shop.place().await?];
                if number % 3 == 0 {
                    done.extend(stage.shop.pay().await?);
                }
                if number % REFUND_EVERY == 10 {
                    done.extend(stage.shop.refund().await?);
                }
                done.into_iter().for_each(|done| stage.record(done));
            }
            _ = pictures.tick() => {
                let status = stage.status().await?;
                let back_in = warehouse_down.then(|| ROUND - seconds % ROUND);
                screen.show(&Picture {
                    seconds,
                    ledger: &stage.ledger(),
                    status: &status,
                    warehouse_back_in: back_in,
                    url: &stage.url,
                    new_url: &stage.new_url,
                    http: stage.http,
                });
            }
            failed = stage.failed() => return Err(failed),
        }
    }
}
