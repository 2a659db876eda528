//! Deliveries with which relays have died. They wait without permits and begin a few at a time, so that the
//! next death is blamed on few. Those blamed twice begin alone.

use std::collections::VecDeque;

use super::job::Job;

/// Suspects in flight at once.
const FEW: u32 = 8;

/// How a suspect is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Suspect {
    /// With a few others.
    Few,
    /// With no other suspect.
    Alone,
}

/// The suspects of a relay.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    waiting: VecDeque<Job>,
    few: u32,
    alone: u32,
}

impl Suspects {
    pub(super) fn add(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    pub(super) fn count(&self) -> usize {
        self.waiting.len()
    }

    /// The next that may begin; one that may not goes to the end of the queue.
    pub(super) fn next(&mut self, may_send: impl FnOnce(&Job) -> bool) -> Option<(Job, Suspect)> {
        let job = self.waiting.pop_front()?;
        let suspect = if job.blame() == 1 { Suspect::Few } else { Suspect::Alone };
        let has_room = match suspect {
            Suspect::Few => self.alone == 0 && self.few < FEW,
            Suspect::Alone => self.alone + self.few == 0,
        };
        if !(has_room || job.is_deadly()) || !may_send(&job) {
            self.waiting.push_back(job);
            return None;
        }
        *self.in_flight(suspect) += 1;
        Some((job, suspect))
    }

    pub(super) fn ended(&mut self, suspect: Suspect) {
        *self.in_flight(suspect) -= 1;
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> + '_ {
        self.waiting.drain(..)
    }

    fn in_flight(&mut self, suspect: Suspect) -> &mut u32 {
        match suspect {
            Suspect::Few => &mut self.few,
            Suspect::Alone => &mut self.alone,
        }
    }
}
