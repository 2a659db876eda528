//! How many deliveries of one subscription may be in flight: earned by answers, lost by refusals. Pure.
//!
//! A window begins small and doubles with each round of successes while that brings more throughput; a round
//! is as many answers as the window is wide. Then wider and narrower windows are tried in turn, and the
//! narrowest that loses no throughput is kept. It shrinks on refusals, errors and time-outs, and when answers
//! take much longer without growing in number. After a refusal it stays below the refused width for a while.

use std::time::{Duration, Instant};

/// Width at the beginning and after a long rest.
const FIRST: f64 = 8.0;
/// A rest without answers after which a window begins again.
const RESTED: Duration = Duration::from_secs(10);
/// Time without an answer, while something is in flight, after which a subscription is silent.
const SILENT: Duration = Duration::from_secs(1);
/// Latency above the best that is no sign of congestion.
const SLACK: Duration = Duration::from_millis(25);
/// Multiple of the best latency that is no sign of congestion.
const FACTOR: f64 = 1.6;
/// How long a window stays below a refused width at first. It doubles with each refusal.
const REMEMBER: Duration = Duration::from_secs(10);
/// Longest time that a refused width is remembered.
const REMEMBER_AT_MOST: Duration = Duration::from_secs(300);
/// A round lasts at least this long, and longer while widths are compared.
const SHORTEST_ROUND: Duration = Duration::from_millis(10);
const SHORTEST_TRIAL: Duration = Duration::from_millis(50);
/// A window with shorter answers costs nobody a wait worth a comparison: it is not made narrower, and it is
/// made wider as long as it loses no throughput.
const PROMPT: f64 = 0.001;
/// Rounds at one width before another is tried.
const REST_ROUNDS: u32 = 3;
/// Slow start goes on while a window twice as wide has this many times the throughput.
const WORTH_DOUBLING: f64 = 1.25;
/// Time after which the best latency is forgotten.
const BEST_FOR: Duration = Duration::from_secs(30);

/// What an attempt shows about the capacity of its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It took the event.
    Success,
    /// The destination asks for less: 429, 503.
    Refused,
    /// The destination fails: 5xx, time-out, broken connection.
    Failed,
    /// The answer is about this event alone.
    Other,
}

/// The window of one subscription.
#[derive(Debug, Clone)]
pub(crate) struct Window {
    width: f64,
    ceiling: f64,
    slow_start: bool,
    answered: Option<Instant>,
    shrunk: Option<Instant>,
    refused: Option<(f64, Instant, Duration)>,
    best: Option<(Duration, Instant)>,
    round: Round,
    /// Answers per second in the round before.
    rate: f64,
    /// Average latency in the last round (seconds).
    latency: f64,
    trial: Trial,
    /// A window twice as wide seemed not to bring more throughput.
    is_doubtful: bool,
}

/// The search for the width that loses no throughput.
#[derive(Debug, Clone, Copy)]
enum Trial {
    /// Measures the present width.
    Rest { rounds: u32, mean: f64, next: Direction },
    /// Measures another width. `base` and `rate` are what it is compared with.
    Running { direction: Direction, base: f64, rate: f64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Wider,
    Narrower,
}

impl Trial {
    fn rest(next: Direction) -> Self {
        Self::Rest { rounds: 0, mean: 0.0, next }
    }
}

impl Default for Trial {
    fn default() -> Self {
        Self::rest(Direction::Wider)
    }
}

#[derive(Debug, Clone)]
struct Round {
    began: Instant,
    /// Number of successes.
    answers: u32,
    /// Sum of their latencies.
    latency: Duration,
    /// Whether the window was ever full.
    full: bool,
}

impl Window {
    pub(crate) fn new(ceiling: u32, now: Instant) -> Self {
        let ceiling = f64::from(ceiling.max(1));
        Self {
            width: FIRST.min(ceiling),
            ceiling,
            slow_start: true,
            answered: None,
            shrunk: None,
            refused: None,
            best: None,
            round: Round::new(now),
            rate: 0.0,
            latency: 0.0,
            trial: Trial::default(),
            is_doubtful: false,
        }
    }

    /// Changes the ceiling.
    pub(crate) fn set_ceiling(&mut self, ceiling: u32) {
        self.ceiling = f64::from(ceiling.max(1));
        self.width = self.width.min(self.ceiling);
    }

    /// Number of deliveries that may be in flight; at least 1.
    pub(crate) fn width(&self) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the ceiling"
        )]
        let width = self.width.max(1.0) as u32;
        width
    }

    /// Whether the destination has answered within [`RESTED`].
    pub(crate) fn is_proven(&self, now: Instant) -> bool {
        self.answered.is_some_and(|then| now.duration_since(then) < RESTED)
    }

    /// Whether deliveries are in flight and none was answered for [`SILENT`]. `oldest`: start of the oldest
    /// one.
    pub(crate) fn is_silent(&self, oldest: Option<Instant>, now: Instant) -> bool {
        let waits = |since: Instant| now.duration_since(since) >= SILENT;
        oldest.is_some_and(waits) && self.answered.is_none_or(waits)
    }

    /// Successes per second in the last round; 0 before the first and after the window has shrunk.
    pub(crate) fn rate(&self) -> f64 {
        self.rate
    }

    /// An outage is over: the window begins again as a new one does.
    pub(crate) fn begin_again(&mut self, now: Instant) {
        self.width = self.width.min(FIRST);
        self.slow_start = true;
        self.rate = 0.0;
        self.round = Round::new(now);
        self.trial = Trial::default();
    }

    /// A delivery begins. `in_flight` includes it.
    pub(crate) fn begin(&mut self, in_flight: u32, now: Instant) {
        if in_flight <= 1 && self.answered.is_some_and(|then| now.duration_since(then) >= RESTED) {
            self.width = self.width.min(FIRST);
            self.slow_start = true;
            self.round = Round::new(now);
        }
        if f64::from(in_flight) + 0.5 >= self.width.floor() {
            self.round.full = true;
        }
    }

    /// Of what is in flight no more may begin, because `reserve` is kept free: as if the window were full.
    pub(crate) fn keep_free(&mut self, in_flight: u32, reserve: u32) {
        self.round.full |= f64::from(in_flight + reserve) + 0.5 >= self.width.floor();
    }

    /// A delivery that began at `began` has ended.
    pub(crate) fn end(&mut self, answer: Answer, began: Instant, now: Instant) {
        let took = now.saturating_duration_since(began);
        match answer {
            Answer::Success => self.succeeded(took, now),
            Answer::Other => self.answered = Some(now),
            Answer::Refused => {
                self.answered = Some(now);
                if self.may_shrink(began) {
                    let remember =
                        self.refused.map_or(REMEMBER, |(_, _, before)| (before * 2).min(REMEMBER_AT_MOST));
                    self.refused = Some((self.width, now, remember));
                    self.shrink(0.7, now);
                }
            }
            Answer::Failed => {
                if self.may_shrink(began) {
                    self.shrink(0.5, now);
                }
            }
        }
    }

    /// An attempt that began before the window shrank tells nothing of the new width.
    fn may_shrink(&self, began: Instant) -> bool {
        self.shrunk.is_none_or(|then| began >= then)
    }

    fn shrink(&mut self, by: f64, now: Instant) {
        self.width = (self.width * by).max(1.0);
        self.slow_start = false;
        self.shrunk = Some(now);
        self.round = Round::new(now);
        self.rate = 0.0;
        self.trial = Trial::default();
    }

    fn succeeded(&mut self, took: Duration, now: Instant) {
        self.answered = Some(now);
        match self.best {
            Some((best, since)) if took >= best && now.duration_since(since) < BEST_FOR => {}
            _ => self.best = Some((took, now)),
        }
        let round = &mut self.round;
        round.answers += 1;
        round.latency += took;
        // Answers from far away come in bursts, once in each round trip: several are measured.
        let least = if self.slow_start {
            SHORTEST_ROUND.as_secs_f64().max(self.latency)
        } else {
            SHORTEST_TRIAL.as_secs_f64().max(self.latency * 3.0)
        };
        if f64::from(round.answers) >= self.width.max(8.0)
            && now.duration_since(round.began).as_secs_f64() >= least
        {
            self.end_round(now);
        }
    }

    fn end_round(&mut self, now: Instant) {
        let round = std::mem::replace(&mut self.round, Round::new(now));
        let length = now.duration_since(round.began).as_secs_f64().max(1e-6);
        let rate = f64::from(round.answers) / length;
        let before = std::mem::replace(&mut self.rate, rate);
        self.latency = round.latency.as_secs_f64() / f64::from(round.answers.max(1));
        let best = self.best.map_or(0.0, |(best, _)| best.as_secs_f64());
        let congested = self.latency > (best * FACTOR).max(best + SLACK.as_secs_f64());
        if congested && rate <= before * 1.1 {
            // Deliveries queue up at the destination: let most of that queue drain.
            self.width =
                (self.width * (best + SLACK.as_secs_f64()) / self.latency).max(self.width * 0.7).max(1.0);
            self.slow_start = false;
            self.trial = Trial::default();
        } else if !round.full {
            self.trial = Trial::default();
        } else if self.slow_start {
            let stays_prompt = self.latency <= PROMPT / 2.0;
            if before == 0.0 || rate >= before * WORTH_DOUBLING || stays_prompt {
                self.width += if congested { 1.0 } else { self.width };
                self.is_doubtful = false;
            } else if !self.is_doubtful {
                // Measured once more.
                self.is_doubtful = true;
                self.rate = before;
            } else {
                self.is_doubtful = false;
                self.slow_start = false;
                self.width = (self.width / 2.0).max(FIRST.min(self.ceiling));
                self.trial = Trial::default();
            }
        } else {
            self.try_width(rate, congested);
        }
        self.width = self.width.min(self.limit(now));
    }

    /// Tries a wider and a narrower window in turn, and keeps the narrowest that loses no throughput.
    fn try_width(&mut self, rate: f64, congested: bool) {
        match self.trial {
            Trial::Rest { rounds, mean, next } => {
                let rounds = rounds + 1;
                let mean = mean + (rate - mean) / f64::from(rounds);
                if rounds < REST_ROUNDS {
                    self.trial = Trial::Rest { rounds, mean, next };
                } else if next == Direction::Narrower && self.latency <= PROMPT {
                    self.trial = Trial::rest(Direction::Wider);
                } else {
                    self.begin_trial(next, mean, congested);
                }
            }
            Trial::Running { direction: Direction::Wider, base, rate: base_rate } => {
                let worth = if self.latency <= PROMPT { 0.97 } else { 1.0 + 0.4 * (self.width / base - 1.0) };
                if rate >= base_rate * worth {
                    self.begin_trial(Direction::Wider, rate, congested);
                } else {
                    self.width = base;
                    self.trial = Trial::rest(Direction::Narrower);
                }
            }
            Trial::Running { direction: Direction::Narrower, base, rate: base_rate } => {
                if rate >= base_rate * 0.97 {
                    self.trial = Trial::rest(Direction::Narrower);
                } else {
                    self.width = base;
                    self.trial = Trial::rest(Direction::Wider);
                }
            }
        }
    }

    fn begin_trial(&mut self, direction: Direction, rate: f64, congested: bool) {
        let base = self.width;
        self.width = match direction {
            Direction::Wider if congested || self.refused.is_some() => base + 1.0,
            Direction::Wider => base + (base * 0.25).max(1.0),
            Direction::Narrower => (base * 0.8).max(FIRST.min(base)),
        };
        self.trial = if direction == Direction::Narrower && self.width >= base {
            Trial::rest(Direction::Wider)
        } else {
            Trial::Running { direction, base, rate }
        };
    }

    fn limit(&mut self, now: Instant) -> f64 {
        match self.refused {
            Some((width, then, remember)) if now.duration_since(then) < remember => {
                (width * 0.9).floor().clamp(1.0, self.ceiling)
            }
            // `refused` is kept, so that the next refusal counts for longer.
            _ => self.ceiling,
        }
    }
}

impl Round {
    fn new(now: Instant) -> Self {
        Self { began: now, answers: 0, latency: Duration::ZERO, full: false }
    }
}

#[cfg(test)]
mod tests;
