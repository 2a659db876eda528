//! Destinations: they act, refuse, hang, redirect and answer too late, as the seed says.

use std::net::{IpAddr, Ipv4Addr};

use pgoutbox::sink::egress::{Egress, Guard};
use rand::Rng as _;

use super::{
    checker::Request,
    database::Millis,
    defect::Defect,
    relay::ATTEMPT,
    world::{Who, World},
};

/// What a relay learns of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Response {
    Ok,
    Failed,
    /// To an address inside.
    Redirect,
    /// No byte was sent.
    Forbidden,
    /// The connection broke; it may have acted.
    Broken,
    Timeout,
}

/// An answer, and when it comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    pub(crate) after: Millis,
    pub(crate) response: Response,
}

/// Where metadata of a cloud's machine is served: a trap for requests.
const INSIDE: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

impl World {
    /// A request begins. None: there will be no answer.
    pub(super) fn reach(&mut self, request: Request, at: usize, who: Option<Who>) -> Option<Answer> {
        let after = self.random.random_range(1..60);
        if Some(request.subscription) == self.weather.inside {
            // The product's own guard.
            if !Guard::new(&Egress::default()).is_allowed(INSIDE)
                && !self.has(Defect::LiteralAddressUnchecked)
            {
                return Some(Answer { after, response: Response::Forbidden });
            }
            self.journal.trapped += 1;
        }
        let is_poison = Some(request.event) == self.weather.poison;
        self.journal.requests.push(request);
        if is_poison && let Some(who) = who {
            self.die(who);
            return None;
        }
        let roll = if self.is_healed { 1.0 } else { self.random.random::<f64>() };
        let weather = &self.weather;
        if roll < weather.failures {
            return Some(Answer { after, response: Response::Failed });
        }
        if roll < weather.failures + weather.redirects {
            if self.has(Defect::RedirectsFollowed) {
                self.journal.trapped += 1;
            }
            return Some(Answer { after, response: Response::Redirect });
        }
        if roll < weather.failures + weather.redirects + weather.breaks {
            // It acts or not, and nobody knows.
            if self.random.random_bool(0.5) {
                self.takes_effect(at, after);
            }
            return Some(Answer { after: after + 1, response: Response::Broken });
        }
        if roll < weather.failures + weather.redirects + weather.breaks + weather.hangs {
            if self.random.random_bool(0.5) {
                let late = self.random.random_range(0..ATTEMPT + 1_000);
                self.takes_effect(at, late);
            }
            return None;
        }
        let slow = match weather.slow {
            slow if slow >= 1.0 => self.random.random_range(1_000..1_900),
            slow if self.random.random_bool(slow) => self.random.random_range(0..1_500),
            _ => 0,
        };
        self.takes_effect(at, after + slow);
        Some(Answer { after: after + slow + self.random.random_range(1..30), response: Response::Ok })
    }

    fn takes_effect(&mut self, request: usize, after: Millis) {
        self.after(after, move |world| {
            let now = world.now();
            if let Some(request) = world.journal.requests.get_mut(request) {
                request.effect = Some(now);
            }
        });
    }

    /// The event has killed the relay that sends it.
    fn die(&mut self, who: Who) {
        self.journal.deaths_by_poison += 1;
        let at_risk = self.at_risk(who.relay);
        self.journal.fault("killed by an event", at_risk);
        self.kill(who.relay);
        let wait = self.random.random_range(100..1_000);
        self.after(wait, move |world| world.start(who.relay));
    }
}
