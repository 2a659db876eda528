//! Virtual time: what is to happen, in order. Nothing waits.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::{database::Millis, world::World};

/// Something that happens at a moment.
pub(crate) type Act = Box<dyn FnOnce(&mut World)>;

struct Planned {
    at: Millis,
    /// What is planned first happens first.
    number: u64,
    act: Act,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Planned {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// A clock that goes from one event to the next.
#[derive(Default)]
pub(crate) struct Clock {
    pub(crate) now: Millis,
    planned: BinaryHeap<Reverse<Planned>>,
    numbers: u64,
}

impl Clock {
    pub(crate) fn at(now: Millis) -> Self {
        Self { now, ..Self::default() }
    }

    pub(crate) fn after(&mut self, wait: Millis, act: Act) {
        self.numbers += 1;
        let planned = Planned { at: self.now + wait.max(0), number: self.numbers, act };
        self.planned.push(Reverse(planned));
    }

    /// Goes on to what happens next.
    pub(crate) fn next(&mut self) -> Option<Act> {
        let Reverse(planned) = self.planned.pop()?;
        self.now = planned.at;
        Some(planned.act)
    }
}
