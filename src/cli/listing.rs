//! What every list of rows takes: how many at most, and for whom it is printed.

use super::print;

#[derive(Debug, clap::Args)]
pub(super) struct Listing {
    /// List at most so many.
    #[arg(
        long,
        alias = "max-rows",
        value_name = "COUNT",
        default_value_t = 100,
        value_parser = clap::value_parser!(i32).range(1..=i64::from(Listing::MOST))
    )]
    pub(super) limit: i32,
    /// Print one JSON object a line.
    #[arg(long)]
    pub(super) json: bool,
}

impl Listing {
    /// Most rows.
    const MOST: i32 = 100_000;

    /// Says that there may be more than these. `which`: `the newest ` or nothing.
    pub(super) fn note(&self, shown: usize, which: &str) {
        let Self { limit, .. } = self;
        if i32::try_from(shown) == Ok(*limit) {
            let more = if *limit < Self::MOST { "; --limit shows more" } else { "" };
            print::note!("these are {which}{limit}{more}");
        }
    }
}
