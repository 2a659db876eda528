//! A lease of this relay: its token, when it was given, and whether it is lost.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A lease, as far as this relay knows.
#[derive(Debug)]
pub(super) struct Lease {
    state: Mutex<LeaseState>,
    lost: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct LeaseState {
    token: Uuid,
    /// When it was last given or renewed: our monotonic clock before the statement was sent.
    given: Instant,
    /// A verdict was refused: nothing more is written under this lease, and no newer one goes on with it.
    refused: bool,
}

impl Lease {
    pub(super) fn new(token: Uuid, given: Instant) -> Self {
        let state = LeaseState { token, given, refused: false };
        Self { state: Mutex::new(state), lost: CancellationToken::new() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, LeaseState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn token(&self) -> Uuid {
        self.state().token
    }

    pub(super) fn given(&self) -> Instant {
        self.state().given
    }

    /// Renewed under this token by a statement that was sent at `given`.
    pub(super) fn renewed(&self, token: Uuid, given: Instant) {
        let mut state = self.state();
        if state.token == token {
            state.given = given;
        }
    }

    /// Another has it, unless it goes on under a newer token meanwhile.
    pub(super) fn taken(&self, token: Uuid) {
        if self.state().token == token {
            self.lost.cancel();
        }
    }

    /// Whether it is to be renewed: it was given or renewed so long ago, and not refused.
    pub(super) fn is_old(&self, age: Duration, now: Instant) -> bool {
        let state = self.state();
        !state.refused && now.duration_since(state.given) >= age
    }

    /// Goes on under the token of a newer lease, unless a verdict was refused. Returns whether it goes on.
    pub(super) fn replace(&self, newer: &Self) -> bool {
        let newer = *newer.state();
        let mut state = self.state();
        if state.refused {
            return false;
        }
        *state = newer;
        true
    }

    /// A verdict under this token was refused: the database has this lease no more, and what it was for may
    /// be in other hands. Ends it for good. Returns false if it goes on under a newer token meanwhile: the
    /// verdict is then written again under that.
    pub(super) fn refuse(&self, token: Uuid) -> bool {
        let mut state = self.state();
        if state.token != token {
            return false;
        }
        state.refused = true;
        self.lost.cancel();
        true
    }

    /// Whether a verdict was refused.
    pub(super) fn is_refused(&self) -> bool {
        self.state().refused
    }

    /// Whether the database cannot have ended it yet, with this length.
    pub(super) fn still_runs(&self, length: Duration) -> bool {
        self.given().elapsed() < length
    }

    /// What is under way under it ends, and nothing begins.
    pub(super) fn give_up(&self) {
        self.lost.cancel();
    }

    /// Cancelled when the lease is lost.
    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }
}
