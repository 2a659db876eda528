//! Signals. Every signal whose default is to end a process asks for a drain, except those of a crash;
//! `run` reloads at SIGHUP.

use std::{future::poll_fn, task::Poll};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT, SIGQUIT.
const ASKED: [i32; 3] = [15, 2, 3];
/// Signals that nobody sends to a relay on purpose, and that would end it: SIGUSR1, SIGUSR2, SIGALRM,
/// SIGSTKFLT, SIGXCPU, SIGXFSZ, SIGVTALRM, SIGPROF, SIGIO, SIGPWR, by their numbers on Linux.
#[cfg(target_os = "linux")]
const STRAY: [i32; 10] = [10, 12, 14, 16, 24, 25, 26, 27, 29, 30];
#[cfg(not(target_os = "linux"))]
const STRAY: [i32; 0] = [];
/// Real-time signals, which the C library leaves to programs.
#[cfg(target_os = "linux")]
const REAL_TIME: std::ops::RangeInclusive<i32> = 35..=64;
#[cfg(not(target_os = "linux"))]
const REAL_TIME: std::ops::Range<i32> = 0..0;

/// Receives the signals that end a process.
pub(super) struct Signals(Vec<Signal>);

impl Signals {
    /// Those of a command that SIGHUP ends, such as one in a terminal that is closed.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut signals = Self::without_hangup()?;
        signals.0.push(hangup()?);
        Ok(signals)
    }

    /// All but SIGHUP.
    pub(super) fn without_hangup() -> anyhow::Result<Self> {
        let mut signals = Vec::new();
        for number in ASKED {
            signals.push(signal(SignalKind::from_raw(number)).context("listening for signals")?);
        }
        // Best effort: a system may lack some of them.
        signals.extend(
            STRAY.into_iter().chain(REAL_TIME).filter_map(|number| signal(SignalKind::from_raw(number)).ok()),
        );
        Ok(Self(signals))
    }

    /// Waits for one of them.
    pub(super) async fn next(&mut self) {
        poll_fn(|context| {
            let came = self.0.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Receives SIGHUP.
pub(super) fn hangup() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("listening for SIGHUP")
}
