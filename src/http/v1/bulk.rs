//! Changes of many rows at once: what is chosen, and how the answer looks. The answers themselves are
//! [`BulkCount`](crate::admin::BulkCount), as the command line prints it.

use utoipa::ToSchema;

use super::problem::{Kind, Problem};
use crate::admin::{Unclear, unclear_choice};

/// Rows, if the request does not say how many at most.
const USUAL: i32 = 1_000;

/// Refuses to change everything that was not asked for. `is_chosen`: whether there is a filter.
pub(super) fn check(is_chosen: bool, all: bool, dry_run: bool) -> Result<(), Problem> {
    let why = match unclear_choice(is_chosen, all, dry_run) {
        None => return Ok(()),
        Some(Unclear::Nothing) => "nothing is chosen: add a filter, or \"all\": true for all of them",
        Some(Unclear::Both) => "\"all\" cannot be combined with a filter",
    };
    Err(Problem::new(Kind::Invalid, why).field("all"))
}

/// How many rows at most.
pub(super) fn most(limit: Option<i32>) -> Result<i32, Problem> {
    match limit.unwrap_or(USUAL) {
        most @ 1..=100_000 => Ok(most),
        _ => Err(Problem::invalid("limit: must be 1 to 100000")),
    }
}

/// Declares the answer of a verb.
macro_rules! counted {
    ($(#[$about:meta])* $name:ident { $done:ident, $would:ident }) => {
        $(#[$about])*
        #[derive(Debug, ToSchema)]
        #[schema(as = $name)]
        #[expect(dead_code, reason = "only its schema is used")]
        #[serde(untagged)]
        pub(super) enum $name {
            /// Rows were changed.
            Done {
                /// How many were changed.
                $done: i64,
                /// How many match that are left.
                left: i64,
            },
            /// Rows were only counted.
            Counted {
                /// How many would be changed.
                $would: i64,
                /// How many match.
                matching: i64,
            },
        }
    };
}

counted! {
    /// How many dead letters became deliveries again.
    Redriven { redriven, would_redrive }
}
counted! {
    /// How many dead letters were deleted.
    Discarded { discarded, would_discard }
}
counted! {
    /// How many deliveries are due now.
    Retried { retried, would_retry }
}
counted! {
    /// How many deliveries were removed.
    Cancelled { cancelled, would_cancel }
}
