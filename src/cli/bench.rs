//! `bench`: what to measure.

use std::time::Duration;

use crate::lab::bench::{Options, Row, Size};
use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Bench {
    /// Two minutes instead of some ten.
    #[arg(long)]
    quick: bool,
    /// A few seconds, for the tests: the figures mean nothing.
    #[arg(long, hide = true, conflicts_with = "quick")]
    tiny: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
    /// Only these rows.
    #[arg(long, value_enum, value_delimiter = ',', value_name = "ROW")]
    only: Vec<Row>,
    /// How long the held transaction stays open, such as 10m [default: 60s, 10s with --quick].
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
