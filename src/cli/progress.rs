//! A line on the terminal that says how far a long command is. Nothing is written where standard error is no
//! terminal.

use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use super::print;

pub(super) struct Progress {
    /// None: there is no terminal.
    doing: Option<&'static str>,
    total: i64,
}

impl Progress {
    /// `doing`: such as `redriven`.
    pub(super) fn new(doing: &'static str, total: i64) -> Self {
        Self { doing: stderr().is_terminal().then_some(doing), total }
    }

    /// Shows how many are done, and how long the others take.
    pub(super) fn show(&self, done: i64, left: Option<Duration>) {
        if let Some(doing) = self.doing {
            print::write_progress(&line(doing, done, self.total, left));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.doing.is_some() {
            print::write_progress("");
        }
    }
}

/// A duration for people: rounded up to seconds, from two minutes on to minutes, from two hours on to hours.
pub(super) fn about(length: Duration) -> String {
    let seconds = length.as_secs_f64().ceil() as u64;
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h", seconds.div_ceil(3_600)),
    }
}

fn line(doing: &str, done: i64, total: i64, left: Option<Duration>) -> String {
    let percent = (100 * done).checked_div(total).unwrap_or(100);
    let left = left.map(|left| format!(", {} left", about(left)));
    format!("{doing} {done} of {total} ({percent} %){}", left.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_many_and_how_long() {
        assert_eq!(line("redriven", 0, 0, None), "redriven 0 of 0 (100 %)");
        let left = Some(Duration::from_millis(18_400));
        assert_eq!(line("redriven", 120, 1000, left), "redriven 120 of 1000 (12 %), 19s left");
        assert_eq!(["0s", "2m", "120m", "3h"], [0, 120, 7_199, 7_201].map(|s| about(Duration::from_secs(s))));
    }
}
