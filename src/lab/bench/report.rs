//! Prints figures to standard output: as a table, row by row, or as one JSON object a line.

use std::io::{self, Write};

use serde_json::{Value, json};

use super::Row;

/// Values of all rounds.
#[derive(Debug, Clone, Default)]
pub(super) struct Series(Vec<f64>);

impl Series {
    pub(super) fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        match self.0.len() {
            0 => f64::NAN,
            length if length.is_multiple_of(2) => f64::midpoint(self.0[middle - 1], self.0[middle]),
            _ => self.0[middle],
        }
    }

    fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }
}

/// A figure and its floor.
#[derive(Debug)]
pub(super) struct Figure {
    pub(super) row: Row,
    pub(super) metric: String,
    pub(super) unit: &'static str,
    pub(super) value: Series,
    pub(super) floor: Series,
    /// Goal of the ratio, such as `>= 0.70`; empty for none.
    pub(super) goal: &'static str,
}

impl Figure {
    pub(super) fn new(row: Row, metric: impl Into<String>, unit: &'static str, goal: &'static str) -> Self {
        Self { row, metric: metric.into(), unit, value: Series::default(), floor: Series::default(), goal }
    }

    /// Ratio of the medians; none if the floor is zero.
    fn ratio(&self) -> Option<f64> {
        Some(self.value.median() / self.floor.median()).filter(|ratio| ratio.is_finite())
    }

    fn json(&self) -> Value {
        json!({
            "row": self.row.name(),
            "metric": self.metric,
            "value": rounded(self.value.median()),
            "floor": rounded(self.floor.median()),
            "ratio": self.ratio().map(|ratio| (ratio * 1_000.0).round() / 1_000.0),
            "min": rounded(self.value.min()),
            "max": rounded(self.value.max()),
            "unit": self.unit,
            "floor_min": rounded(self.floor.min()),
            "floor_max": rounded(self.floor.max()),
            "goal": self.goal,
        })
    }

    fn text(&self) -> String {
        let cell = |series: &Series| {
            if series.0.is_empty() {
                return "-".to_owned();
            }
            format!("{} ({} to {})", human(series.median()), human(series.min()), human(series.max()))
        };
        let ratio = self.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        line(&[
            self.row.name(),
            &self.metric,
            &cell(&self.value),
            &cell(&self.floor),
            self.unit,
            &ratio,
            self.goal,
        ])
    }
}

/// Prints the report.
#[derive(Debug)]
pub(super) struct Report {
    json: bool,
}

impl Report {
    /// Prints the machine and the header.
    pub(super) fn open(json: bool, machine: &Value) -> io::Result<Self> {
        if json {
            print(&json!({ "machine": machine }).to_string())?;
        } else {
            for (name, value) in machine.as_object().into_iter().flatten() {
                let value = match value {
                    Value::String(text) => text.clone(),
                    Value::Object(settings) => {
                        settings.iter().map(|(name, value)| format!("{name} {value}  ")).collect()
                    }
                    other => other.to_string(),
                };
                print(format!("{name:<25} {}", value.replace('"', "").trim_end()).trim_end())?;
            }
            print("")?;
            print(&line(&[
                "row",
                "metric",
                "median (min to max)",
                "floor (min to max)",
                "unit",
                "ratio",
                "goal",
            ]))?;
        }
        Ok(Self { json })
    }

    /// Prints the figures of a row, and in a table the description of its floor.
    pub(super) fn print(&mut self, floor: &str, figures: &[Figure]) -> io::Result<()> {
        for figure in figures {
            print(&if self.json { figure.json().to_string() } else { figure.text() })?;
        }
        if self.json { Ok(()) } else { print(&format!("    floor: {floor}")) }
    }

    /// Prints that a figure was not measured, and why.
    pub(super) fn not_run(&mut self, row: Row, metric: &str, why: &dyn std::fmt::Display) -> io::Result<()> {
        let text = format!("{:<17} {metric:<38} not run: {why}", row.name());
        print(&if self.json {
            json!({ "row": row.name(), "metric": metric, "not_run": why.to_string() }).to_string()
        } else {
            text
        })
    }
}

fn print(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn line(cells: &[&str; 7]) -> String {
    let [row, metric, value, floor, unit, ratio, goal] = cells;
    format!("{row:<17} {metric:<38} {value:>29} {floor:>29} {unit:<13} {ratio:>6}  {goal}")
        .trim_end()
        .to_owned()
}

/// Rounds to about three significant digits.
fn rounded(value: f64) -> f64 {
    let scale = if value.abs() >= 100.0 { 1.0 } else { 1_000.0 };
    (value * scale).round() / scale
}

fn human(value: f64) -> String {
    if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_of_its_rounds_and_the_ratio_that_of_the_medians() {
        let mut figure = Figure::new(Row::Fanout, "test", "events/s", "");
        for (value, floor) in [(30.0, 40.0), (10.0, 20.0), (20.0, 100.0)] {
            figure.value.push(value);
            figure.floor.push(floor);
        }
        let line = figure.json();
        assert_eq!(
            (&line["value"], &line["floor"], &line["ratio"]),
            (&json!(20.0), &json!(40.0), &json!(0.5))
        );
        assert_eq!((&line["min"], &line["max"]), (&json!(10.0), &json!(30.0)));
        assert_eq!(figure.value.median(), 20.0);
    }

    #[test]
    fn a_floor_of_zero_has_no_ratio() {
        let mut figure = Figure::new(Row::HeldTransaction, "dead tuples", "rows", "");
        figure.value.push(5.0);
        figure.floor.push(0.0);
        assert_eq!(figure.json()["ratio"], Value::Null);
    }
}
