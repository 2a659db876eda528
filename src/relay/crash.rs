//! Points at which a test ends the process, as a crash would. In a build without the feature `internals` they
//! do nothing.

/// A step of a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Point {
    /// It is committed which subscriptions get the events of a page.
    Routed,
    /// It is committed which subscriptions get urgent events before their turn.
    RoutedEarly,
    /// A claim is committed.
    Claimed,
    /// An attempt is about to begin.
    Sending,
    /// Its answer has come.
    Answered,
    /// A verdict is about to be written.
    Settling,
    /// A verdict is committed.
    Settled,
}

/// Ends the process if a test has chosen this point. The variable `TEST_CRASH_AT` has its name, and with
/// `:2` the process ends when it gets there for the second time.
#[cfg(feature = "internals")]
#[expect(clippy::disallowed_methods, reason = "it is no setting")]
pub(super) fn point(point: Point) {
    use std::sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    };
    static CHOSEN: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static REACHED: AtomicU32 = AtomicU32::new(0);
    let chosen = CHOSEN.get_or_init(|| {
        let text = std::env::var("TEST_CRASH_AT").ok()?;
        let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
        Some((name.to_owned(), count.parse().ok()?))
    });
    if let Some((name, count)) = chosen
        && name.eq_ignore_ascii_case(&format!("{point:?}"))
        && REACHED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        std::process::abort();
    }
}

#[cfg(not(feature = "internals"))]
pub(super) const fn point(_: Point) {}
