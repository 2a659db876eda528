//! How many connections this process may open: raises the limit of file descriptors, and keeps some back for
//! the database, probes and files.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that receivers of webhooks never use: probes and their clients, SQL functions, brokers, files.
const KEPT_BACK: usize = 384;

/// Raises the soft limit of file descriptors to the hard one. Returns the limit; none if there is none.
pub(super) fn raise_descriptors() -> Option<usize> {
    let before = getrlimit(Resource::Nofile);
    // Best effort: without it the relay works with fewer.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    getrlimit(Resource::Nofile).current.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Connections to receivers of webhooks that may be open at once.
pub(super) fn connections(descriptors: Option<usize>, pool: u32) -> Option<usize> {
    let kept_back = KEPT_BACK + 2 * usize::try_from(pool).unwrap_or(usize::MAX / 4);
    // With very few, half of them still go to receivers.
    descriptors.map(|all| all.saturating_sub(kept_back).max(all / 2).max(1))
}

/// Live clients that may be connected at once: what is configured, and no more than a quarter of the
/// descriptors.
pub(super) fn live_clients(descriptors: Option<usize>, configured: usize) -> usize {
    descriptors.map_or(configured, |all| configured.min((all / 4).max(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_clients_leave_descriptors_to_deliveries() {
        assert_eq!(live_clients(None, 10_000), 10_000);
        assert_eq!(live_clients(Some(1_000_000), 10_000), 10_000);
        assert_eq!(live_clients(Some(1_024), 10_000), 256);
    }

    #[test]
    fn descriptors_are_kept_back_for_the_database_and_probes() {
        assert_eq!(connections(None, 4), None);
        assert_eq!(connections(Some(1_024), 4), Some(632));
        assert_eq!(connections(Some(64), 4), Some(32));
        assert_eq!(connections(Some(0), 4), Some(1));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise_descriptors();
        let limits = getrlimit(Resource::Nofile);
        assert_eq!(raised, limits.maximum.map(|limit| limit as usize));
    }
}
