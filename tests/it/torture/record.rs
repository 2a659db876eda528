//! What a run of torture found, and its page in the book.

use std::{collections::BTreeMap, fmt, time::Duration};

/// What one round found.
#[derive(Debug, Clone, Default)]
pub(super) struct Balance {
    pub(super) faults: BTreeMap<&'static str, usize>,
    pub(super) events: usize,
    pub(super) owed: usize,
    pub(super) lost: usize,
    pub(super) phantom: usize,
    pub(super) duplicates: usize,
    pub(super) duplicates_allowed: usize,
    pub(super) out_of_order: usize,
    pub(super) takeover: Duration,
    pub(super) standstill: Duration,
    /// The kinds of findings, with their beginning.
    pub(super) violated: Vec<String>,
}

/// The sum of all rounds.
#[derive(Debug)]
pub(super) struct Record {
    seed: u64,
    minutes: u64,
    /// Version of PostgreSQL, and the day.
    server: String,
    rounds: usize,
    sum: Balance,
}

impl Record {
    pub(super) fn new(seed: u64, minutes: u64, server: String) -> Self {
        Self { seed, minutes, server, rounds: 0, sum: Balance::default() }
    }

    pub(super) fn add(&mut self, round: &Balance) {
        self.rounds += 1;
        let sum = &mut self.sum;
        for (kind, count) in &round.faults {
            *sum.faults.entry(kind).or_default() += count;
        }
        sum.events += round.events;
        sum.owed += round.owed;
        sum.lost += round.lost;
        sum.phantom += round.phantom;
        sum.duplicates += round.duplicates;
        sum.duplicates_allowed += round.duplicates_allowed;
        sum.out_of_order += round.out_of_order;
        sum.takeover = sum.takeover.max(round.takeover);
        sum.standstill = sum.standstill.max(round.standstill);
    }

    /// Writes the page of the book.
    pub(super) fn write(&self) {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fault-record.md"), self.to_string())
            .unwrap();
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, minutes, server, rounds, sum } = self;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let faults: usize = sum.faults.values().sum();
        writeln!(f, "# Record of faults\n")?;
        writeln!(
            f,
            "One run of `make torture`: three relays behind proxies, a PostgreSQL of their own, publishers,"
        )?;
        writeln!(
            f,
            "and a receiver that fails now and then, while one fault follows the other. In rounds of two"
        )?;
        writeln!(
            f,
            "minutes everything heals, and what was published is compared with what came. The same command"
        )?;
        writeln!(
            f,
            "chooses the same faults; when each strikes depends on the machine. This run: a debug build,"
        )?;
        writeln!(f, "{processors} processors, PostgreSQL {server}.\n")?;
        writeln!(f, "```sh\nmake torture SEED={seed} MINUTES={minutes}\n```\n")?;
        writeln!(f, "| What | Figure |\n|---|---|")?;
        writeln!(f, "| Rounds | {rounds} |")?;
        writeln!(f, "| Faults | {faults} |")?;
        writeln!(f, "| Events committed | {} |", sum.events)?;
        writeln!(f, "| Deliveries owed | {} |", sum.owed)?;
        writeln!(f, "| Lost | {} |", sum.lost)?;
        writeln!(f, "| Sent without being committed or wanted | {} |", sum.phantom)?;
        writeln!(f, "| Out of the order of their key | {} |", sum.out_of_order)?;
        writeln!(f, "| Duplicates | {} |", sum.duplicates)?;
        writeln!(f, "| Duplicates that the faults allow | {} |", sum.duplicates_allowed)?;
        writeln!(
            f,
            "| Slowest takeover from a killed or frozen relay | {:.1} s |",
            sum.takeover.as_secs_f64()
        )?;
        writeln!(
            f,
            "| Longest time after the last fault in which nothing that was left ended | {:.1} s |\n",
            sum.standstill.as_secs_f64()
        )?;
        writeln!(f, "| Fault | Times |\n|---|---|")?;
        for (kind, count) in &sum.faults {
            writeln!(f, "| {kind} | {count} |")?;
        }
        Ok(())
    }
}
