//! Places for connections. A new connection always gets one: when they are used up, the connection that waits
//! longest for its client is closed, of the address that has most of them. So nobody keeps probes out by
//! opening connections and sending nothing.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// Connections that wait for their clients, at once.
const WAITING: usize = 256;
/// More connections than these are refused: all are being answered.
const MOST: usize = 320;

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Places {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    /// By number, so in the order in which they came.
    places: BTreeMap<u64, Place>,
    next: u64,
}

#[derive(Debug)]
struct Place {
    address: IpAddr,
    answering: Arc<AtomicU32>,
    close: CancellationToken,
}

/// The place of one connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    places: Arc<Places>,
    number: u64,
    answering: Arc<AtomicU32>,
    /// Cancelled when another connection needs the place.
    pub(super) close: CancellationToken,
}

impl Places {
    /// A place for a connection of this address; none if every connection is being answered.
    pub(super) fn take(self: &Arc<Self>, address: IpAddr) -> Option<Taken> {
        let mut open = self.open();
        if open.places.len() >= WAITING {
            open.close_one();
        }
        if open.places.len() >= MOST {
            return None;
        }
        let number = open.next;
        open.next += 1;
        let (answering, close) = (Arc::<AtomicU32>::default(), CancellationToken::new());
        let place = Place { address, answering: answering.clone(), close: close.clone() };
        open.places.insert(number, place);
        Some(Taken { places: self.clone(), number, answering, close })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    /// Closes the oldest connection of the address that has most of those that wait for their clients.
    fn close_one(&mut self) {
        let mut waiting: HashMap<IpAddr, (usize, u64)> = HashMap::new();
        for (number, place) in &self.places {
            if place.answering.load(Ordering::Acquire) == 0 {
                waiting.entry(place.address).or_insert((0, *number)).0 += 1;
            }
        }
        let most = waiting.values().max_by_key(|(count, _)| *count).map(|(_, oldest)| *oldest);
        if let Some(place) = most.and_then(|oldest| self.places.remove(&oldest)) {
            place.close.cancel();
        }
    }
}

impl Taken {
    /// Keeps the place while a request is answered.
    pub(super) fn answering(&self) -> Answering {
        self.answering.fetch_add(1, Ordering::AcqRel);
        Answering(self.answering.clone())
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.open().places.remove(&self.number);
    }
}

/// A request that is being answered.
#[derive(Debug)]
pub(super) struct Answering(Arc<AtomicU32>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What a request knows of its connection. A connection that becomes one of a live client needs its place no
/// longer: places are for requests, and live clients have limits of their own.
#[derive(Debug, Clone)]
pub(super) struct Seat(Arc<SeatState>);

#[derive(Debug)]
struct SeatState {
    address: IpAddr,
    taken: Mutex<Option<Taken>>,
    /// Cancelled when the place was given back.
    left: CancellationToken,
    /// Grows while the client reads.
    reads: AtomicU32,
    /// How long a live client may not read, once that is a limit.
    patience: Mutex<Option<Duration>>,
}

impl Seat {
    pub(super) fn new(address: IpAddr, taken: Taken) -> Self {
        Self(Arc::new(SeatState {
            address,
            taken: Mutex::new(Some(taken)),
            left: CancellationToken::new(),
            reads: AtomicU32::new(0),
            patience: Mutex::default(),
        }))
    }

    /// Address of the client.
    pub(super) fn address(&self) -> IpAddr {
        self.0.address
    }

    /// Keeps the place while a request is answered.
    pub(super) fn answering(&self) -> Option<Answering> {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Taken::answering)
    }

    /// Gives the place back: the connection becomes one of a live client.
    pub(super) fn leave(&self) {
        self.0.taken.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.0.left.cancel();
    }

    /// Gives the place back, as long as the client reads: the connection ends when it has not for so long.
    pub(super) fn leave_while_read(&self, patience: Duration) {
        *self.0.patience.lock().unwrap_or_else(PoisonError::into_inner) = Some(patience);
        self.leave();
    }

    /// The client has taken what it was sent.
    pub(super) fn is_read(&self) {
        self.0.reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Waits until the connection has lasted long enough: after `longest`, or for a live client when it does
    /// not read.
    pub(super) async fn over(&self, longest: Duration) {
        if tokio::time::timeout(longest, self.0.left.cancelled()).await.is_err() {
            return;
        }
        let patience = *self.0.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(patience) = patience else { return std::future::pending().await };
        let mut looks = tokio::time::interval(patience);
        let mut before = None;
        loop {
            looks.tick().await;
            let reads = self.0.reads.load(Ordering::Acquire);
            if before.replace(reads) == Some(reads) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_with_most_connections_that_wait_loses_its_oldest() {
        let (one, many) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let places = Arc::new(Places::default());
        let probe = places.take(one).unwrap();
        let busy = places.take(many).unwrap();
        let _answer = busy.answering();
        let idle: Vec<Taken> = (2..WAITING).map(|_| places.take(many).unwrap()).collect();
        let newest = places.take(many).unwrap();
        assert!(idle[0].close.is_cancelled() && !idle[1].close.is_cancelled());
        assert!(!probe.close.is_cancelled() && !busy.close.is_cancelled() && !newest.close.is_cancelled());
    }

    #[test]
    fn connections_that_are_all_being_answered_are_bounded() {
        let places = Arc::new(Places::default());
        let address = IpAddr::from([10, 0, 0, 1]);
        let taken: Vec<Taken> = (0..MOST).map(|_| places.take(address).unwrap()).collect();
        assert!(taken.iter().any(|one| one.close.is_cancelled()), "none was being answered");
        drop(taken);
        let busy: Vec<(Taken, Answering)> = (0..MOST)
            .map(|_| places.take(address).unwrap())
            .map(|one| {
                let answering = one.answering();
                (one, answering)
            })
            .collect();
        assert!(places.take(address).is_none() && busy.iter().all(|(one, _)| !one.close.is_cancelled()));
        drop(busy);
        assert!(places.take(address).is_some());
    }
}
