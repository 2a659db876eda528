//! `bench`: options of the benchmark.

use std::time::Duration;

use crate::lab::bench::{Options, Row, Size};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Take a few minutes instead of an hour.
    #[arg(long)]
    quick: bool,
    /// Take a few seconds, for tests: the figures mean nothing.
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
    /// Measure only these rows.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    only: Vec<Row>,
    /// Duration of the held transaction, such as 10m [default: 60s, 10s with --quick].
    #[arg(long, value_parser = crate::delivery::duration::parse, value_name = "DURATION")]
    held: Option<Duration>,
}

impl From<Bench> for Options {
    fn from(Bench { quick, tiny, json, only, held }: Bench) -> Self {
        let size = match (quick, tiny) {
            (_, true) => Size::Tiny,
            (true, _) => Size::Quick,
            _ => Size::Full,
        };
        Self { size, json, only, held }
    }
}
