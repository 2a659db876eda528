//! Windows against simulated receivers.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

/// A simulated receiver with an endless backlog.
struct Simulation<R> {
    window: Window,
    origin: Instant,
    now: Duration,
    /// End, start and answer of each attempt.
    in_flight: BinaryHeap<Reverse<(Duration, Duration, u8)>>,
    /// Returns the answer and how long it takes, from the number in flight and the time.
    receive: R,
    delivered: u32,
    refused: u32,
}

impl<R: FnMut(usize, Duration) -> (Answer, Duration)> Simulation<R> {
    fn new(ceiling: u32, receive: R) -> Self {
        let origin = Instant::now();
        let window = Window::new(ceiling, origin);
        Self {
            window,
            origin,
            now: Duration::ZERO,
            in_flight: BinaryHeap::new(),
            receive,
            delivered: 0,
            refused: 0,
        }
    }

    fn run(&mut self, until: Duration) -> &mut Self {
        (self.delivered, self.refused) = (0, 0);
        while self.now < until {
            while self.in_flight.len() < self.window.width() as usize {
                let (answer, takes) = (self.receive)(self.in_flight.len(), self.now);
                self.in_flight.push(Reverse((self.now + takes, self.now, answer as u8)));
                self.window.begin(u32::try_from(self.in_flight.len()).unwrap(), self.origin + self.now);
            }
            let Some(Reverse((ends, began, answer))) = self.in_flight.pop() else { return self };
            self.now = ends;
            let answer =
                [Answer::Success, Answer::Refused, Answer::Failed, Answer::Other][usize::from(answer)];
            self.delivered += u32::from(answer == Answer::Success);
            self.refused += u32::from(answer == Answer::Refused);
            self.window.end(answer, self.origin + began, self.origin + ends);
        }
        self
    }
}

const MS: Duration = Duration::from_millis(1);
const S: Duration = Duration::from_secs(1);

#[test]
fn a_receiver_50_ms_away_has_250_in_flight_within_a_second_and_gets_5000_a_second() {
    let mut trial = Simulation::new(512, |_, _| (Answer::Success, 50 * MS));
    trial.run(S);
    assert!(trial.window.width() >= 250, "{}", trial.window.width());
    trial.run(3 * S);
    assert!(trial.delivered >= 10_000, "{} in two seconds", trial.delivered);
}

#[test]
fn a_fast_receiver_soon_has_half_of_the_ceiling_in_flight() {
    let mut trial = Simulation::new(512, |_, _| (Answer::Success, MS / 2));
    trial.run(100 * MS);
    assert!(trial.window.width() >= 256, "{}", trial.window.width());
}

#[test]
fn a_window_is_no_wider_than_what_brings_throughput() {
    // Four at once, 0.1 ms each, as a receiver on the same machine: more than a few in flight only wait.
    let mut free = [Duration::ZERO; 4];
    let mut trial = Simulation::new(512, move |_, now| {
        let next = free.iter_mut().min().unwrap();
        *next = now.max(*next) + MS / 10;
        (Answer::Success, *next - now)
    });
    trial.run(5 * S);
    assert!((8..=48).contains(&trial.window.width()), "{}", trial.window.width());
    trial.run(10 * S);
    assert!(trial.delivered >= 190_000, "{} in five seconds", trial.delivered);
}

#[test]
fn a_receiver_that_does_several_in_a_turn_is_given_several_although_its_rate_varies() {
    // As one on the same machine, which other work interrupts: a turn costs it 0.3 ms and 25 us for each.
    let mut trial = Simulation::new(512, |in_flight, now| {
        let noise = (now.as_millis() / 50).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32 & 0xff;
        let takes = Duration::from_micros(300 + 25 * in_flight as u64);
        (Answer::Success, takes.mul_f64(1.0 + noise as f64 / 800.0))
    });
    trial.run(2 * S);
    assert!(trial.window.width() >= 20, "{}", trial.window.width());
    for seconds in 3..30 {
        trial.run(seconds * S);
        assert!((20..=64).contains(&trial.window.width()), "{} after {seconds} s", trial.window.width());
    }
}

#[test]
fn a_receiver_that_takes_200_a_second_is_kept_busy_and_has_no_long_queue() {
    // It answers one after the other, each after 5 ms.
    let mut free = Duration::ZERO;
    let mut trial = Simulation::new(512, move |_, now| {
        free = free.max(now) + 5 * MS;
        (Answer::Success, free - now)
    });
    trial.run(5 * S);
    let width = trial.window.width();
    assert!((2..=32).contains(&width), "{width} in flight: {} ms of queue", width * 5);
    trial.run(10 * S);
    assert!(trial.delivered >= 980, "{} in five seconds", trial.delivered);
}

#[test]
fn a_receiver_of_20_at_once_is_seldom_refused() {
    let mut trial = Simulation::new(512, |in_flight, _| {
        if in_flight >= 20 { (Answer::Refused, 5 * MS) } else { (Answer::Success, 20 * MS) }
    });
    trial.run(5 * S);
    assert!(trial.refused <= 60, "{} refused at first", trial.refused);
    assert!((10..=22).contains(&trial.window.width()), "{}", trial.window.width());
    trial.run(60 * S);
    assert!(trial.refused <= 60, "{} refused in 55 seconds", trial.refused);
    assert!(trial.delivered >= 55 * 500, "{} in 55 seconds", trial.delivered);
}

#[test]
fn a_receiver_that_hangs_keeps_a_few_and_is_served_again_when_it_recovers() {
    let mut trial = Simulation::new(512, |_, now| {
        if now < 60 * S { (Answer::Failed, 15 * S) } else { (Answer::Success, 10 * MS) }
    });
    trial.run(59 * S);
    assert!(trial.window.width() <= 4, "{}", trial.window.width());
    trial.run(90 * S);
    let before = trial.window.width();
    assert!(before >= 100, "{before} after it recovered");
}

#[test]
fn errors_of_attempts_in_flight_together_shrink_it_once() {
    let now = Instant::now();
    let mut window = Window::new(512, now);
    window.width = 100.0;
    for _ in 0..100 {
        window.end(Answer::Failed, now, now + S);
    }
    assert_eq!(window.width(), 50);
    window.end(Answer::Failed, now + S, now + 2 * S);
    assert_eq!(window.width(), 25);
}

#[test]
fn it_does_not_grow_while_it_is_not_full() {
    let mut now = Instant::now();
    let mut window = Window::new(512, now);
    for _ in 0..1_000 {
        window.begin(1, now);
        window.end(Answer::Success, now, now + MS);
        now += 10 * MS;
    }
    assert_eq!(window.width(), 8, "one at a time needs no more");
}

#[test]
fn after_a_rest_it_starts_again() {
    let mut trial = Simulation::new(512, |_, _| (Answer::Success, MS));
    trial.run(S);
    let Simulation { mut window, origin, now, .. } = trial;
    assert!(window.width() > 100);
    window.begin(1, origin + now + RESTED);
    assert_eq!(window.width(), 8);
}

#[test]
fn a_silent_receiver_is_noticed_after_a_second() {
    let now = Instant::now();
    let mut window = Window::new(512, now);
    assert!(
        !window.is_silent(None, now + S)
            && !window.is_silent(Some(now), now + S / 2)
            && window.is_silent(Some(now), now + S)
    );
    window.end(Answer::Success, now, now + S);
    assert!(!window.is_silent(Some(now), now + S) && window.is_silent(Some(now), now + 2 * S));
    assert!(window.is_proven(now + 5 * S) && !window.is_proven(now + 12 * S));
}
