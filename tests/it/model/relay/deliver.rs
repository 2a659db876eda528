//! Attempts of a relay: what begins, within permits, and what a destination answers.

use std::rc::Rc;

use pgoutbox::{Outcome, Reason, event::Event, relay::decisions::Fate};

use super::{
    super::{
        checker::Request,
        database::Millis,
        defect::Defect,
        sink::{Answer, Response},
        world::{Who, World},
    },
    Ended, Job, Relay,
};

/// The longest that an attempt may take.
pub(crate) const ATTEMPT: Millis = 2_000;
/// Suspects of one death in flight at once.
const FEW: usize = 8;

impl World {
    fn permits_used(&mut self, who: Who) -> usize {
        let early = self.has(Defect::PermitReleasedBeforeSettle);
        let memory = self.memory(who);
        let unsettled = memory.unsettled.iter().filter(|one| one.has_permit).count();
        let recorded = if early { 0 } else { unsettled + memory.settling_permits };
        memory.in_flight.len() + recorded
    }

    /// What a death repeats: what is in flight, or answered and not recorded.
    pub(crate) fn at_risk(&self, relay: usize) -> usize {
        let Relay { is_alive, memory, .. } = &self.relays[relay];
        let unsettled = memory.unsettled.iter().filter(|one| one.has_permit).count();
        let all = memory.in_flight.len() + unsettled + memory.settling_permits;
        if *is_alive { all.min(self.weather.permits) } else { 0 }
    }

    /// Begins what may begin now.
    pub(super) fn begin(&mut self, who: Who) {
        while !self.memory(who).is_stopping && self.permits_used(who) < self.weather.permits {
            let Some(at) = self.next_job(who) else { return };
            let Some(job) = self.memory(who).ahead.remove(at) else { return };
            self.attempt(who, job);
            if !self.relays[who.relay].is_alive || self.relays[who.relay].life != who.life {
                return;
            }
        }
    }

    /// The next delivery that may begin: one of a subscription that may be sent to, a suspect only with few
    /// of its kind.
    fn next_job(&mut self, who: Who) -> Option<usize> {
        let sends_paused = self.has(Defect::PausedIsSent);
        let memory = self.memory(who);
        let blames: Vec<u32> = memory.in_flight.values().map(Job::blame).filter(|blame| *blame > 0).collect();
        let may_begin = |job: &Job| {
            let is_sent_to = memory.index.get(&job.subscription).is_some_and(|one| one.row.active);
            let has_room = match job.blame() {
                0 => true,
                1 => blames.len() < FEW && blames.iter().all(|blame| *blame == 1),
                _ => blames.is_empty(),
            };
            (is_sent_to || sends_paused) && (has_room || job.is_deadly())
        };
        memory.ahead.iter().position(may_begin)
    }

    fn attempt(&mut self, who: Who, job: Job) {
        let retry = |reason| Outcome::Retry { reason, after: None };
        let was_sent = job.is_sent && self.memory(who).sent.contains(&(job.subscription, job.position));
        let refused = if was_sent {
            Some((Outcome::Delivered, true))
        } else if job.is_deadly() {
            Some((Outcome::Rejected { reason: Reason::RelayKilled }, false))
        } else if !self.is_good(job.held.lease()) {
            Some((retry(Reason::LeaseLost), false))
        } else if job.event.is_none() {
            Some((Outcome::Rejected { reason: Reason::EventUnreadable }, true))
        } else {
            None
        };
        if let Some((outcome, counts)) = refused {
            let ended = Ended { job, outcome, ambiguous: false, counts, has_permit: true };
            return self.settle_later(who, ended);
        }
        let Some(event) = job.event.clone() else { return };
        if self.has(Defect::SettledBeforeTheAttempt) {
            let outcome = Outcome::Delivered;
            let ended = Ended { job: job.clone(), outcome, ambiguous: false, counts: true, has_permit: true };
            self.settle_later(who, ended);
            self.send_unasked(who, job.subscription, event);
            return;
        }
        self.attempts += 1;
        let attempt = self.attempts;
        let subscription = job.subscription;
        self.memory(who).in_flight.insert(attempt, job);
        let answer = self.request(Some((who, attempt)), subscription, &event);
        if self.relays[who.relay].life != who.life || !self.relays[who.relay].is_alive {
            return;
        }
        if let Some(Answer { after, response }) = answer {
            self.after_at(who, after, move |world| world.answered(who, attempt, response));
        }
        self.after_at(who, ATTEMPT, move |world| world.answered(who, attempt, Response::Timeout));
    }

    /// Sends what is not held: only a defect does so.
    pub(super) fn send_unasked(&mut self, who: Who, subscription: i64, event: Rc<Event>) {
        let answer = self.request(Some((who, 0)), subscription, &event);
        if answer.is_some_and(|answer| answer.response == Response::Ok) {
            self.memory(who).sent.insert((subscription, event.position.0));
        }
    }

    /// An attempt has ended; what comes later of it is ignored.
    fn answered(&mut self, who: Who, attempt: u64, response: Response) {
        let takes_timeouts = self.has(Defect::AmbiguousIsDelivered);
        let Some(job) = self.memory(who).in_flight.remove(&attempt) else { return };
        let retry = |reason| Outcome::Retry { reason, after: None };
        let (outcome, ambiguous) = match response {
            Response::Ok => (Outcome::Delivered, false),
            Response::Failed => (retry(Reason::ServerError), false),
            Response::Redirect => (retry(Reason::Redirect), false),
            Response::Forbidden => (retry(Reason::ForbiddenAddress), false),
            Response::Broken => (retry(Reason::BrokenAnswer), true),
            Response::Timeout if takes_timeouts => (Outcome::Delivered, false),
            Response::Timeout => (retry(Reason::Timeout), true),
        };
        if ambiguous {
            self.journal.ambiguous += 1;
        }
        let goes_on = self.has(Defect::KeyGoesOnWithTheAnswer);
        if goes_on && let Some(lane) = job.lane.clone() {
            // The gate is told what the verdict will be before it is written.
            let fate = if outcome == Outcome::Delivered { Fate::Done } else { Fate::Retried };
            self.tell_gate(who, &job, &lane, fate);
        }
        let ended = Ended { job, outcome, ambiguous, counts: true, has_permit: true };
        self.settle_later(who, ended);
        self.begin(who);
    }

    /// Ends attempts whose lease was lost: the destination may act nevertheless.
    pub(super) fn cut_off(&mut self, who: Who, all: bool, reason: Reason) {
        let memory = self.memory(who);
        let lost = |job: &Job| all || job.held.lease().is_lost.get();
        let ended: Vec<u64> =
            memory.in_flight.iter().filter(|(_, job)| lost(job)).map(|(at, _)| *at).collect();
        for attempt in ended {
            let Some(job) = self.memory(who).in_flight.remove(&attempt) else { continue };
            let outcome = Outcome::Retry { reason, after: None };
            self.journal.ambiguous += 1;
            self.settle_later(who, Ended { job, outcome, ambiguous: true, counts: true, has_permit: true });
        }
    }

    /// Gives back what has not begun.
    pub(super) fn give_back(&mut self, who: Who, jobs: Vec<Job>) {
        for job in jobs {
            let outcome = Outcome::Retry { reason: Reason::LeaseLost, after: None };
            self.settle_later(
                who,
                Ended { job, outcome, ambiguous: false, counts: false, has_permit: false },
            );
        }
    }

    pub(super) fn settle_later(&mut self, who: Who, ended: Ended) {
        let memory = self.memory(who);
        memory.unsettled.push(ended);
        if memory.unsettled.len() == 1 {
            let gather = self.travel();
            self.after_at(who, gather, move |world| world.settle(who));
        }
    }

    /// Stops: what is in flight may end, the rest goes back.
    pub(crate) fn stop(&mut self, relay: usize) {
        let who = self.who(relay);
        if !self.relays[relay].is_alive || self.memory(who).is_stopping {
            return;
        }
        self.memory(who).is_stopping = true;
        let back: Vec<Job> = self.memory(who).ahead.drain(..).collect();
        self.give_back(who, back);
        self.close_gates(who);
        if self.has(Defect::StopCutsOff) {
            self.kill(relay);
            return self.after(500, move |world| world.start(relay));
        }
        self.after_at(who, 100, move |world| world.drain(who, 0));
    }

    fn drain(&mut self, who: Who, waited: Millis) {
        let memory = self.memory(who);
        if memory.in_flight.is_empty() && memory.unsettled.is_empty() && memory.settling == 0 {
            self.release_order_of(who);
            // The last statement is on its way.
            return self.after_at(who, 600, move |world| {
                world.kill(who.relay);
                world.after(500, move |world| world.start(who.relay));
            });
        }
        if waited == 5_000 {
            self.cut_off(who, true, Reason::RelayStopped);
        }
        self.settle(who);
        self.after_at(who, 100, move |world| world.drain(who, waited + 100));
    }

    /// Records a request, and what the destination does of it.
    fn request(
        &mut self,
        sender: Option<(Who, u64)>,
        subscription: i64,
        event: &Rc<Event>,
    ) -> Option<Answer> {
        let request = Request {
            event: event.id,
            subscription,
            relay: sender.map_or(0, |(who, _)| who.relay),
            begun: self.now(),
            effect: None,
        };
        let at = self.journal.requests.len();
        self.reach(request, at, sender.map(|(who, _)| who))
    }
}
