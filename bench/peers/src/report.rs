//! Figures on standard output: tables for people, or one JSON object a line.

use std::{
    io::{self, Write},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    figures::{Drain, Kill},
    systems::{Role, System},
};

/// The measurements of one run, as they are printed.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    pub(crate) json: bool,
    pub(crate) machine: Value,
    pub(crate) results: Vec<Result<'a>>,
}

/// The measurements of a system.
#[derive(Debug)]
pub(crate) struct Result<'a> {
    system: &'a System,
    version: String,
    drains: Vec<Drain>,
    kills: Vec<Kill>,
    failures: Vec<String>,
}

impl<'a> Result<'a> {
    pub(crate) fn new(system: &'a System, version: String) -> Self {
        Self { system, version, drains: Vec::new(), kills: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn drained(&mut self, drain: anyhow::Result<Drain>) {
        match drain {
            Ok(drain) => self.drains.push(drain),
            Err(error) => self.failed(&error),
        }
    }

    pub(crate) fn killed(&mut self, kill: anyhow::Result<Kill>) {
        match kill {
            Ok(kill) => self.kills.push(kill),
            Err(error) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        eprintln!("{} failed: {text}", self.system.name);
        self.failures.push(text);
    }

    /// The rates in ascending order.
    fn sorted(&self) -> Vec<f64> {
        let mut rates: Vec<f64> = self.drains.iter().map(|drain| drain.rate).collect();
        rates.sort_by(f64::total_cmp);
        rates
    }

    fn rate(&self) -> Option<f64> {
        median(&self.sorted())
    }

    /// Median of a figure over all drains.
    fn of_drains(&self, figure: impl Fn(&Drain) -> f64) -> f64 {
        let mut figures: Vec<f64> = self.drains.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        median(&figures).unwrap_or(f64::NAN)
    }
}

/// The median of sorted figures.
fn median(sorted: &[f64]) -> Option<f64> {
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        length if length.is_multiple_of(2) => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

impl Report<'_> {
    /// # Errors
    /// When something could not be measured, after everything that could.
    pub(crate) fn print(&self) -> anyhow::Result<()> {
        let mut text = String::new();
        if self.json {
            self.lines(&mut text)
        } else {
            self.tables(&mut text)
        }
        io::stdout().lock().write_all(text.as_bytes())?;
        let failures: usize = self.results.iter().map(|result| result.failures.len()).sum();
        anyhow::ensure!(failures == 0, "{failures} measurements failed; their errors stand above");
        Ok(())
    }

    fn rate_of(&self, role: Role) -> Option<f64> {
        let rates = self.results.iter().filter(|result| result.system.role == role).filter_map(Result::rate);
        rates.max_by(f64::total_cmp)
    }

    fn events(&self) -> f64 {
        self.machine["jobs"].as_f64().unwrap_or(f64::NAN)
    }

    fn lines(&self, text: &mut String) {
        let mut line = |value: Value| text.push_str(&format!("{value}\n"));
        line(json!({ "machine": self.machine }));
        for result in &self.results {
            let (rate, sorted) = (result.rate(), result.sorted());
            let ratio = |other: Option<f64>| Some(hundredths(rate? / other?));
            let micros = |figure: fn(&Drain) -> Duration| {
                hundredths(result.of_drains(|drain| per_event(figure(drain), self.events())))
            };
            line(json!({
                "system": result.system.name,
                "version": result.version,
                "configuration": result.system.configuration,
                "rates": result.drains.iter().map(|drain| drain.rate.round()).collect::<Vec<_>>(),
                "median": rate.map(f64::round),
                "min": sorted.first().map(|rate| rate.round()),
                "max": sorted.last().map(|rate| rate.round()),
                "of_floor": ratio(self.rate_of(Role::Floor)),
                "of_best_peer": ratio(self.rate_of(Role::Peer)),
                "start_s": hundredths(result.of_drains(|drain| drain.start.as_secs_f64())),
                "settled_s": hundredths(result.of_drains(|drain| drain.settled.as_secs_f64())),
                "body_bytes": result.of_drains(|drain| drain.body as f64).round(),
                "repeated": result.drains.iter().map(|drain| drain.repeated).sum::<usize>(),
                "worker_cpu_us": micros(|drain| drain.worker_cpu),
                "postgres_cpu_us": micros(|drain| drain.postgres_cpu),
                "lock": result.system.lock,
                "kills": result.kills.iter().map(|kill| json!({
                    "after": kill.at,
                    "held": kill.held,
                    "repeated": kill.repeated,
                    "late": kill.late,
                    "whole_after_s": kill.whole.map(|whole| hundredths(whole.as_secs_f64())),
                })).collect::<Vec<_>>(),
                "failures": result.failures,
            }));
        }
    }

    fn tables(&self, text: &mut String) {
        for (name, value) in self.machine.as_object().into_iter().flatten() {
            let value = match value {
                Value::String(text) => text.clone(),
                Value::Object(settings) => {
                    settings.iter().map(|(name, value)| format!("{name} {value}  ")).collect()
                }
                other => other.to_string(),
            };
            text.push_str(format!("{name:<12} {}", value.replace('"', "")).trim_end());
            text.push('\n');
        }
        text.push_str("\nEvents per second at the receiver, first request to last event; CPU is processor time for an event\n\n");
        let mut rows = vec![
            [
                "system",
                "median",
                "min",
                "max",
                "of floor",
                "of best peer",
                "worker µs",
                "postgres µs",
                "body B",
                "start s",
                "settled s",
            ]
            .map(str::to_owned)
            .to_vec(),
        ];
        rows[0].push("rounds".to_owned());
        rows.extend(self.results.iter().map(|result| self.row(result)));
        table(text, &rows);
        if self.results.iter().any(|result| !result.kills.is_empty()) {
            text.push_str("\nKilled with SIGKILL in the middle of a backlog and started again; a figure for each kill\n\n");
            let head = ["system", "held", "came again", "late", "whole after s", "what was held waits for"];
            let mut rows = vec![head.map(str::to_owned).to_vec()];
            rows.extend(self.results.iter().filter(|result| !result.kills.is_empty()).map(kills));
            table(text, &rows);
            text.push_str(
                "\nheld: what the database called locked; came again: events that the receiver got twice; late: events that came only\n\
                 when the locks had ended, which were ended by hand for all but pgoutbox\n",
            );
        }
        text.push_str("\nVersions and configurations\n\n");
        for Result { system, version, failures, .. } in &self.results {
            text.push_str(&format!("{} {}: {}\n", system.name, version, system.configuration));
            for failure in failures {
                text.push_str(&format!("  not measured: {failure}\n"));
            }
        }
    }

    fn row(&self, result: &Result<'_>) -> Vec<String> {
        let (rate, sorted) = (result.rate(), result.sorted());
        let whole =
            |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.0}"));
        let ratio = |other: Option<f64>| {
            rate.zip(other).map_or_else(|| "-".to_owned(), |(rate, other)| format!("{:.2}", rate / other))
        };
        let tenth = |figure: f64| if figure.is_finite() { format!("{figure:.1}") } else { "-".to_owned() };
        let micros = |figure: fn(&Drain) -> Duration| {
            tenth(result.of_drains(|drain| per_event(figure(drain), self.events())))
        };
        let database = |cell: String| if result.system.role == Role::Floor { "-".to_owned() } else { cell };
        let repeated: usize = result.drains.iter().map(|drain| drain.repeated).sum();
        let rounds: Vec<String> = result.drains.iter().map(|drain| format!("{:.0}", drain.rate)).collect();
        let rounds = rounds.join(" · ")
            + &if repeated > 0 { format!(" ({repeated} came again)") } else { String::new() };
        vec![
            result.system.name.to_owned(),
            whole(rate),
            whole(sorted.first().copied()),
            whole(sorted.last().copied()),
            ratio(self.rate_of(Role::Floor)),
            ratio(self.rate_of(Role::Peer)),
            micros(|drain| drain.worker_cpu),
            database(micros(|drain| drain.postgres_cpu)),
            whole(Some(result.of_drains(|drain| drain.body as f64)).filter(|body| body.is_finite())),
            tenth(result.of_drains(|drain| drain.start.as_secs_f64())),
            database(tenth(result.of_drains(|drain| drain.settled.as_secs_f64()))),
            rounds,
        ]
    }
}

/// A row of the table of kills.
fn kills(result: &Result<'_>) -> Vec<String> {
    let each = |figure: fn(&Kill) -> String| result.kills.iter().map(figure).collect::<Vec<_>>().join(" · ");
    vec![
        result.system.name.to_owned(),
        each(|kill| kill.held.to_string()),
        each(|kill| kill.repeated.to_string()),
        each(|kill| kill.late.to_string()),
        each(|kill| kill.whole.map_or_else(|| "-".to_owned(), |whole| format!("{:.1}", whole.as_secs_f64()))),
        result.system.lock.to_owned(),
    ]
}

/// A Markdown table with aligned columns.
fn table(text: &mut String, rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if number == 0 {
            let rules: Vec<String> = widths.iter().map(|&width| "-".repeat(width.max(3))).collect();
            text.push_str(&format!("| {} |\n", rules.join(" | ")));
        }
    }
}

/// A time divided by a number of events, in microseconds.
fn per_event(time: Duration, events: f64) -> f64 {
    time.as_secs_f64() * 1e6 / events
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_is_the_middle_of_the_two_in_the_middle() {
        assert_eq!(
            (median(&[]), median(&[1.0, 2.0, 9.0]), median(&[1.0, 2.0, 4.0, 9.0])),
            (None, Some(2.0), Some(3.0))
        );
    }

    #[test]
    fn columns_of_a_table_line_up() {
        let mut text = String::new();
        table(&mut text, &[vec!["a".to_owned(), "µs".to_owned()], vec!["longer".to_owned(), "1".to_owned()]]);
        assert_eq!(text, "| a      | µs |\n| ------ | --- |\n| longer | 1  |\n");
    }
}
