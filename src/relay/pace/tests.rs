//! Relays that reserve slots of one rate, in virtual time, against a model of `reserve_slots.sql`.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::bucket::Bucket;
use crate::{
    delivery::{SubscriptionId, rate::Rate},
    store::SlotsReserved,
};

const ONE: SubscriptionId = SubscriptionId(1);
const STEP: Duration = Duration::from_millis(1);

/// What `reserve_slots.sql` does with a row, at a time in seconds. The row begins long ago.
fn reserve(next_at: &mut f64, now: f64, rate: Rate, slots: u32) -> SlotsReserved {
    let spacing = rate.spacing;
    let ahead = *next_at - now;
    let ahead = if ahead > 2.0 + 2.0 * spacing { 0.0 } else { ahead };
    let first = ahead.max(spacing - spacing.max(0.5));
    let free = if first <= 1.0 { ((1.0 - first) / spacing).floor() + 1.0 } else { 0.0 };
    let reserved = slots.min(free as u32);
    let before = *next_at;
    if reserved > 0 {
        *next_at = now + first + f64::from(reserved) * spacing;
    }
    let time = |seconds: f64| {
        DateTime::UNIX_EPOCH + TimeDelta::microseconds((seconds * 1e6) as i64 + 1_000_000_000_000)
    };
    SlotsReserved {
        first: Some(first),
        reserved,
        free_before: Some(time(before)),
        free_now: (reserved > 0).then(|| time(*next_at)),
    }
}

struct Relay {
    bucket: Bucket,
    /// Deliveries that wait.
    work: u32,
    /// When it asked, when the database answers, when the relay gets that, and how many it wants.
    asked: Option<(Duration, Duration, Duration, u32)>,
    answer: Option<SlotsReserved>,
}

impl Relay {
    fn new(rate: Rate) -> Self {
        Self { bucket: Bucket::new(rate), work: 0, asked: None, answer: None }
    }
}

/// The times of all deliveries (seconds), and how many statements were run.
fn run(
    seed: u64,
    text: &str,
    length: u64,
    relays: usize,
    mut habits: impl FnMut(&mut StdRng, Duration, &mut [Relay]),
) -> (Vec<f64>, u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let rate = Rate::parse(text).unwrap();
    let origin = Instant::now();
    let mut row = -1_000.0;
    let mut all: Vec<Relay> = (0..relays).map(|_| Relay::new(rate)).collect();
    let (mut sent, mut asked) = (Vec::new(), 0);
    let others = u32::try_from(relays - 1).unwrap();
    let mut at = Duration::ZERO;
    while at < Duration::from_secs(length) {
        habits(&mut random, at, &mut all);
        let now = origin + at;
        for relay in &mut all {
            if let Some((began, there, back, slots)) = relay.asked {
                if relay.answer.is_none() && at >= there {
                    relay.answer = Some(reserve(&mut row, there.as_secs_f64(), rate, slots));
                }
                if at >= back
                    && let Some(answer) = relay.answer.take()
                {
                    relay.bucket.answer(&answer, origin + began, now);
                    relay.asked = None;
                }
            }
            while relay.work > 0 {
                if relay.bucket.ready(now) == 0 {
                    relay.bucket.await_slots(ONE, relay.work);
                    break;
                }
                relay.bucket.spend(ONE, 1);
                relay.work -= 1;
                sent.push(at.as_secs_f64());
            }
            if relay.asked.is_none()
                && let Some(slots) = relay.bucket.ask(others, now)
            {
                let mut trip = || Duration::from_millis(random.random_range(0..5));
                let there = at + trip();
                relay.asked = Some((at, there, there + trip(), slots));
                asked += 1;
            }
            let _ = relay.bucket.wake(now);
        }
        at += STEP;
    }
    (sent, asked)
}

/// In no time are there more than a second's worth beyond the rate.
fn assert_holds(sent: &[f64], rate: f64, seed: u64) {
    let mut least = f64::MAX;
    for (at, time) in sent.iter().enumerate() {
        // Deliveries from an earlier one to this one, less what the time between allows.
        let level = at as f64 - rate * time;
        least = least.min(level);
        assert!(level - least + 1.0 <= rate.max(1.0) + 1.5, "seed {seed}: too many until {time} s");
    }
}

#[test]
fn whatever_relays_do_and_however_often_they_start_there_is_never_more_than_a_second_too_much() {
    for seed in 0..100 {
        let rates = [("50/s", 50.0), ("7/s", 7.0), ("90/m", 1.5), ("400/s", 400.0), ("600/h", 1.0 / 6.0)];
        let (text, rate) = rates[seed as usize % rates.len()];
        let relays = 1 + seed as usize / 5 % 4;
        let (sent, _) = run(seed, text, 20, relays, |random, _, all| {
            for relay in all.iter_mut() {
                if random.random_bool(0.002) {
                    relay.work += random.random_range(0..1_000);
                }
                // What waits may go to another relay, and leaves its slots here.
                if random.random_bool(0.002) {
                    relay.work = 0;
                }
                if random.random_bool(0.000_5) {
                    *relay = Relay::new(Rate::parse(text).unwrap());
                }
            }
        });
        assert_holds(&sent, rate, seed);
    }
}

#[test]
fn the_rate_is_reached_with_all_relays_at_work_and_with_one_of_them() {
    for seed in 0..30 {
        for at_work in [1, 3] {
            let (text, rate) = [("50/s", 50.0), ("1000/s", 1_000.0), ("10/s", 10.0)][seed as usize % 3];
            let (sent, asked) = run(seed, text, 30, 3, |_, _, all| {
                all.iter_mut().take(at_work).for_each(|relay| relay.work = 1_000);
            });
            let reached = sent.len() as f64 / 30.0 / rate;
            assert!((0.95..=1.06).contains(&reached), "seed {seed}: {reached} of {text} by {at_work}");
            assert!(asked <= 30 * 2 * at_work as u32 + 4, "{asked} statements in 30 s by {at_work}");
            assert_holds(&sent, rate, seed);
        }
    }
}

#[test]
fn what_comes_below_the_rate_hardly_waits_and_costs_two_statements_a_second() {
    for seed in 0..30 {
        let mut published = 0;
        let (sent, asked) = run(seed, "100/s", 30, 3, |random, _, all| {
            // 30 events a second, anywhere.
            if random.random_bool(0.03) {
                let at = random.random_range(0..all.len());
                all[at].work += 1;
                published += 1;
            }
            // None waits longer than a statement takes.
            assert!(all.iter().map(|relay| relay.work).sum::<u32>() <= 6, "seed {seed}");
        });
        assert!(published - sent.len() <= 6, "{published} and {}", sent.len());
        assert!(asked <= 30 * 3 * 3, "{asked} statements");
    }
}

#[test]
fn a_slow_rate_lets_the_first_delivery_through_at_once_and_leases_nothing_until_the_next() {
    let rate = Rate::parse("60/h").unwrap();
    let now = Instant::now();
    let mut row = -1_000.0;
    let mut bucket = Bucket::new(rate);
    for second in [0u64, 10] {
        let now = now + Duration::from_secs(second);
        assert_eq!(bucket.ready(now), 0);
        bucket.await_slots(ONE, 5);
        let slots = bucket.ask(0, now).unwrap();
        assert_eq!(slots, 1);
        bucket.answer(&reserve(&mut row, second as f64, rate, slots), now, now);
        assert_eq!(bucket.ready(now), u32::from(second == 0));
        bucket.spend(ONE, 1);
    }
    let later = now + Duration::from_secs(10);
    assert_eq!(bucket.ahead(ONE, 0, later), 0);
    let until = bucket.closed_until(later).unwrap();
    assert!(until > later + Duration::from_secs(48) && until < later + Duration::from_secs(51));
    assert!(bucket.ask(0, later).is_none() && bucket.ask(0, until + Duration::from_secs(1)).is_some());
}

#[test]
fn those_that_share_a_rate_take_turns() {
    let rate = Rate::parse("10/s").unwrap();
    let now = Instant::now();
    let mut row = -1_000.0;
    let mut bucket = Bucket::new(rate);
    let (first, second, third) = (SubscriptionId(1), SubscriptionId(2), SubscriptionId(3));
    [first, second, third].into_iter().for_each(|id| bucket.await_slots(id, 5));
    let slots = bucket.ask(0, now).unwrap();
    bucket.answer(&reserve(&mut row, 0.0, rate, slots), now, now);
    assert_eq!(bucket.wake(now), [first, second, third]);
    bucket.spend(first, 1);
    [first, second, third].into_iter().for_each(|id| bucket.await_slots(id, 5));
    assert_eq!(bucket.wake(now + Duration::from_millis(150)), [second, third, first]);
}
