//! `demo --once`: a fixed script of less than a minute, and a check of its result.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, bail, ensure};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use uuid::Uuid;

use super::{
    ledger::{ACCOUNTING, MAIL, WAREHOUSE},
    screen::say,
    stage::Stage,
    status::Status,
};

/// Number of orders, including refused ones.
const ORDERS: usize = 60;
const PAUSE: Duration = Duration::from_millis(100);
/// The warehouse is down between these orders, for three seconds.
const DOWN: std::ops::Range<usize> = 15..45;
/// At this order an earlier one is refunded. Accounting refuses that event until its address is changed.
const REFUND: usize = 20;
/// Deadline of each wait.
const DEADLINE: Duration = Duration::from_secs(20);

pub(super) async fn play(stage: &mut Stage) -> anyhow::Result<()> {
    sell(stage).await?;
    say("the shop is closed; waiting for all deliveries of mail and warehouse, \
         and a dead letter of accounting");
    until(stage, "mail and warehouse have everything and accounting has one dead letter", |stage, status| {
        let ledger = stage.ledger();
        ledger.has_all(MAIL)
            && ledger.has_all(WAREHOUSE)
            && backlog(status) == 0
            && dead_letters(status) == BTreeMap::from([(ACCOUNTING.name, 1)])
    })
    .await?;
    ensure!(stage.ledger().delivered(ACCOUNTING) == 0, "accounting's old address accepted a request");
    ensure!(stage.ledger().refused(WAREHOUSE) > 0, "the warehouse was down but refused nothing");

    say(&format!(
        "accounting's address is wrong; changing it to {} and redriving its dead letter",
        stage.new_url
    ));
    sqlx::query(
        "update outbox.subscriptions set config = jsonb_set(config, '{url}', to_jsonb($2::text)) \
         where name = $1",
    )
    .bind(ACCOUNTING.name)
    .bind(&stage.new_url)
    .execute(&stage.pool)
    .await
    .context("changing accounting's address")?;
    let redriven: i64 = sqlx::query_scalar("select outbox.redrive($1)")
        .bind(ACCOUNTING.name)
        .fetch_one(&stage.pool)
        .await
        .context("redriving")?;
    ensure!(redriven == 1, "outbox.redrive returned {redriven} instead of 1");
    until(stage, "accounting has its event and nothing is pending", |stage, status| {
        stage.ledger().has_all(ACCOUNTING) && backlog(status) == 0 && dead_letters(status).is_empty()
    })
    .await?;
    check(stage).await
}

async fn sell(stage: &mut Stage) -> anyhow::Result<()> {
    say(&format!(
        "the shop opens: {ORDERS} orders; mail fails every fifth time, the warehouse will be down for 3 s"
    ));
    let mut pace = interval(PAUSE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1..=ORDERS {
        tokio::select! {
            _ = pace.tick() => (),
            failed = stage.failed() => return Err(failed),
        }
        if number == DOWN.start || number == DOWN.end {
            let down = number == DOWN.start;
            stage.set_warehouse_down(down);
            say(if down { "the warehouse is down (503)" } else { "the warehouse is back" });
        }
        let mut done = vec![stage.shop.place().await?];
        if number.is_multiple_of(4) {
            done.extend(stage.shop.pay().await?);
        }
        if number == REFUND {
            done.extend(stage.shop.refund().await?);
        }
        done.into_iter().for_each(|done| stage.record(done));
    }
    Ok(())
}

fn backlog(status: &[Status]) -> i64 {
    status.iter().map(|subscription| subscription.backlog).sum()
}

fn dead_letters(status: &[Status]) -> BTreeMap<&str, i64> {
    status
        .iter()
        .filter(|subscription| subscription.dead_letters > 0)
        .map(|subscription| (subscription.name.as_str(), subscription.dead_letters))
        .collect()
}

/// Waits until a condition holds. On timeout the error contains the current state.
async fn until(
    stage: &mut Stage,
    what: &str,
    holds: impl Fn(&Stage, &[Status]) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let mut pace = interval(PAUSE);
    loop {
        let status = timeout_at(deadline, stage.status())
            .await
            .with_context(|| format!("no answer while waiting until {what}"))??;
        if holds(stage, &status) {
            return Ok(());
        }
        tokio::select! {
            _ = pace.tick() => (),
            failed = stage.failed() => return Err(failed),
        }
        if Instant::now() > deadline {
            bail!(
                "not within {} s: {what}; the subscriptions are {status:#?}\n{}",
                DEADLINE.as_secs(),
                stage.ledger().summary()
            );
        }
    }
}

/// Compares the ledger with the database.
async fn check(stage: &Stage) -> anyhow::Result<()> {
    let ledger = stage.ledger();
    let mut findings = ledger.findings();
    let events: Vec<(Uuid, String)> =
        sqlx::query_as("select id, topic from outbox.events").fetch_all(&stage.pool).await?;
    let written: BTreeMap<Uuid, &str> = events.iter().map(|(id, topic)| (*id, topic.as_str())).collect();
    if written != *ledger.committed() {
        findings.push(format!(
            "outbox.events has {} events; the shop committed {}",
            written.len(),
            ledger.committed().len()
        ));
    }
    let orders: i64 = sqlx::query_scalar("select count(*) from shop.orders").fetch_one(&stage.pool).await?;
    let placed: i64 =
        sqlx::query_scalar("select count(*) from outbox.events where topic = 'shop.order.placed'")
            .fetch_one(&stage.pool)
            .await?;
    if orders != placed {
        findings.push(format!("{orders} orders exist, but {placed} events about placed orders"));
    }
    for status in stage.status().await? {
        if status.state != "ok" {
            findings.push(format!("subscription {} is {}", status.name, status.state));
        }
    }
    if ledger.rolled_back() == 0 {
        findings.push("no transaction was rolled back".to_owned());
    }
    if !findings.is_empty() {
        bail!("not as planned:\n  {}\n{}", findings.join("\n  "), ledger.summary());
    }
    say("checked: every committed event reached each matching subscription, and no rolled-back event did");
    Ok(())
}
