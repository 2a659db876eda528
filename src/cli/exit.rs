//! The table of exit codes, and the code for each error.

use std::process::ExitCode;

use super::{Misuse, config};
use crate::{admin, store::schema};

/// Exit code of the program; `pgoutbox --help` prints the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 69,
    Unfinished = 75,
    Denied = 77,
    Misconfigured = 78,
}

impl Exit {
    pub(super) const ALL: [(Self, &'static str); 7] = [
        (Self::Done, "done"),
        (Self::Failed, "failed, or a check found something"),
        (Self::Usage, "wrong usage"),
        (Self::Unreachable, "the database, or for `tail` the relay, cannot be reached"),
        (
            Self::Unfinished,
            "the drain ran out of time or was interrupted; deliveries in flight will be retried",
        ),
        (Self::Denied, "not permitted: the database refuses the login, or the login lacks rights"),
        (Self::Misconfigured, "the configuration is wrong"),
    ];

    /// The exit code for an error.
    pub(super) fn of(error: &anyhow::Error) -> Self {
        let is_denied = |cause: &(dyn std::error::Error + 'static)| {
            cause.downcast_ref().is_some_and(admin::is_denied)
                || matches!(cause.downcast_ref(), Some(admin::Error::Denied { .. }))
                || matches!(cause.downcast_ref(), Some(schema::Error::Rights(_)))
        };
        if error.chain().any(is_denied) {
            return Self::Denied;
        }
        for cause in error.chain() {
            if cause.is::<Misuse>() {
                return Self::Usage;
            }
            if let Some(error) = cause.downcast_ref::<config::Error>() {
                return if error.is_of_choice() { Self::Usage } else { Self::Misconfigured };
            }
            let unreachable = matches!(cause.downcast_ref(), Some(admin::Error::Unreachable { .. }))
                || cause.downcast_ref().is_some_and(admin::is_unreachable);
            if unreachable {
                return Self::Unreachable;
            }
            // The reader of a pipe has ended, such as `head`.
            if cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
            {
                return Self::Done;
            }
        }
        Self::Failed
    }
}

/// An error and its causes on one line. A cause that the text contains already is not repeated.
pub(super) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        if !text.contains(&cause) {
            text = if text.is_empty() { cause } else { format!("{text}: {cause}") };
        }
    }
    // Only the list of mistakes in a configuration keeps its lines.
    if error.is::<config::Error>() {
        text
    } else {
        text.lines().map(str::trim).collect::<Vec<_>>().join("; ")
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
