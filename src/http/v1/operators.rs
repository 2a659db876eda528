//! The few connections of the API. A request has one for itself; a client that goes away ends what it asked
//! for, and its connection with it.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    input::Who,
    problem::{Kind, Problem},
};
use crate::{
    admin::{Error, Operator, Program},
    sink::servers::Servers,
};

/// Most connections of the API of one relay.
pub const CONNECTIONS: usize = 4;
/// Most requests that wait for an event at once: they leave connections to the others.
pub const WAITERS: usize = 2;
/// How long a request waits for a connection.
const PATIENCE: Duration = Duration::from_secs(2);

/// How requests of the API get to the database: with the login of the process.
#[derive(Debug, Clone)]
pub struct Operators(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    servers: Servers,
    pooler: bool,
    environment: String,
    places: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    /// Connections that no request has.
    idle: Mutex<Vec<Operator>>,
}

/// A connection in the hands of one request. It is kept for the next if the request has ended well; otherwise
/// it is closed.
#[derive(Debug)]
pub(super) struct Taken {
    shared: Arc<Shared>,
    operator: Operator,
    is_in_transaction: bool,
    _place: OwnedSemaphorePermit,
    _waiter: Option<OwnedSemaphorePermit>,
}

impl Operators {
    /// Connects when the first request comes. `environment` is that of the relay.
    #[must_use]
    pub fn new(servers: impl Into<Servers>, pooler: bool, environment: String) -> Self {
        let (places, waiters) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(Semaphore::new(WAITERS)));
        let servers = servers.into();
        Self(Arc::new(Shared { servers, pooler, environment, places, waiters, idle: Mutex::default() }))
    }

    /// Name of the environment that the outbox must have.
    pub(super) fn environment(&self) -> &str {
        &self.0.environment
    }

    /// A connection to read with.
    pub(super) async fn take(&self) -> Result<Taken, Problem> {
        self.taken(None).await
    }

    /// A connection to wait for an event with.
    pub(super) async fn take_to_wait(&self) -> Result<Taken, Problem> {
        let waiter = place(&self.0.waiters).await?;
        self.taken(Some(waiter)).await
    }

    /// A connection to publish with, which makes its own transaction.
    pub(super) async fn take_for(&self, who: Who) -> Result<Taken, Problem> {
        let mut taken = self.taken(None).await?;
        taken.act_for(who.0);
        Ok(taken)
    }

    /// A connection in a transaction, which [`Taken::done`] ends.
    pub(super) async fn take_to_change(&self, who: Who) -> Result<Taken, Problem> {
        let mut taken = self.take_for(who).await?;
        taken.begin().await?;
        taken.is_in_transaction = true;
        Ok(taken)
    }

    async fn taken(&self, waiter: Option<OwnedSemaphorePermit>) -> Result<Taken, Problem> {
        let place = place(&self.0.places).await?;
        let operator = match self.idle_one().await {
            Some(operator) => operator,
            None => Operator::connect_as(Program::Api, &self.0.servers, self.0.pooler).await?,
        };
        Ok(Taken {
            shared: self.0.clone(),
            operator,
            is_in_transaction: false,
            _place: place,
            _waiter: waiter,
        })
    }

    /// A connection that was used before and still answers.
    async fn idle_one(&self) -> Option<Operator> {
        loop {
            let mut operator = self.0.idle().pop()?;
            operator.act_for(None);
            if operator.read_clock(0.0).await.is_ok() {
                return Some(operator);
            }
        }
    }
}

impl Shared {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Operator>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn place(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Problem> {
    match tokio::time::timeout(PATIENCE, places.clone().acquire_owned()).await {
        Ok(Ok(place)) => Ok(place),
        _ => Err(Problem::new(Kind::Busy, "all connections of the API are in use")),
    }
}

impl Taken {
    /// Ends the request: commits what was done, or takes it back, and keeps the connection if it is sound.
    pub(super) async fn done<T>(mut self, result: Result<T, Error>) -> Result<T, Problem> {
        // After other errors the session may be in any state.
        let mut is_sound = match &result {
            Ok(_) | Err(Error::Refused { .. } | Error::Denied { .. } | Error::NotMigrated) => true,
            Err(Error::Unreachable { .. } | Error::Failed { .. }) => false,
        };
        let mut ended = Ok(());
        if self.is_in_transaction && is_sound {
            ended = self.operator.end(result.is_ok()).await;
            is_sound = ended.is_ok();
        }
        if is_sound {
            self.shared.idle().push(self.operator);
        }
        let done = result?;
        ended?;
        Ok(done)
    }
}

impl Deref for Taken {
    type Target = Operator;

    fn deref(&self) -> &Operator {
        &self.operator
    }
}

impl DerefMut for Taken {
    fn deref_mut(&mut self) -> &mut Operator {
        &mut self.operator
    }
}
