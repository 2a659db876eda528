//! What each version of each subscription may and must get, from what an operator, publishers and a receiver
//! have seen. It knows nothing of the relay.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use uuid::Uuid;

/// Time within which every relay follows a change: a second, and another for a busy machine.
const FOLLOWED: Duration = Duration::from_secs(2);
/// How much earlier than promised a request may come: the clocks of two processes.
const CLOCKS: Duration = Duration::from_millis(50);
/// `Retry-After` of the receiver.
pub(super) const RETRY_AFTER: Duration = Duration::from_secs(4);

/// One event, and what became of its transaction.
#[derive(Debug, Clone)]
pub(super) struct Event {
    pub(super) id: Uuid,
    pub(super) topic: &'static str,
    pub(super) organization: Option<&'static str>,
    pub(super) key: Option<&'static str>,
    pub(super) number: i64,
    pub(super) kind: &'static str,
    /// Not to be delivered before.
    pub(super) after: Option<Instant>,
    /// When its commit was sent, and when it was confirmed; none if it was rolled back or is still open.
    pub(super) committed: Option<(Instant, Instant)>,
}

/// The fields of a subscription.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub(super) topics: Vec<&'static str>,
    pub(super) organization: Option<&'static str>,
    pub(super) keys: Option<Vec<&'static str>>,
    pub(super) filter: Option<&'static str>,
    pub(super) matched: Option<&'static str>,
    pub(super) secret: Option<&'static str>,
    pub(super) schedule: Vec<&'static str>,
    pub(super) max_in_flight: Option<i32>,
    pub(super) batch: Option<u32>,
    pub(super) timeout: &'static str,
}

impl Spec {
    /// A matcher of its own for the few patterns and expressions of this test.
    fn wants(&self, event: &Event) -> bool {
        let topic = self.topics.iter().any(|pattern| {
            *pattern == "**"
                || (pattern.split('.').count() == event.topic.split('.').count()
                    && pattern
                        .split('.')
                        .zip(event.topic.split('.'))
                        .all(|(one, is)| one == "*" || one == is))
        });
        let key = self.keys.as_ref().is_none_or(|prefixes| {
            event.key.is_some_and(|key| prefixes.iter().any(|prefix| key.starts_with(prefix)))
        });
        let filter = match self.filter {
            None => true,
            Some("payload.n % 2 == 0") => event.number % 2 == 0,
            Some("payload.n % 3 != 0") => event.number % 3 != 0,
            Some(other) => panic!("the model does not know the filter {other}"),
        };
        topic
            && key
            && filter
            && self.matched.is_none_or(|kind| kind == event.kind)
            && self.organization.is_none_or(|organization| event.organization == Some(organization))
    }

    pub(super) fn config(&self, url: &str) -> Value {
        let mut config = json!({"url": url, "timeout": self.timeout});
        if let Some(secret) = self.secret {
            config["secret"] = json!(secret);
        }
        if let Some(max) = self.batch {
            config["batch"] = json!({"max": max, "wait": "50ms"});
        }
        config
    }

    /// Whether a relay can use it.
    pub(super) fn is_valid(&self) -> bool {
        self.secret != Some("env:PGOUTBOX_SECRET_UNSET")
    }
}

/// A subscription between two changes. What was sent to `path` was sent for it or for another version with
/// the same destination.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) path: u32,
    pub(super) spec: Spec,
    /// When the change was begun, and when it was confirmed.
    pub(super) made: (Instant, Instant),
    pub(super) ended: Option<(Instant, Instant)>,
}

/// A resume or an edit.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) begun: Instant,
    pub(super) done: Instant,
    /// Whether it was gone before and is not any more.
    pub(super) was_gone: bool,
    /// Whether it changed something: what was answered to earlier requests binds no longer.
    pub(super) is_new: bool,
}

/// A subscription from `subscribe` to `unsubscribe`.
#[derive(Debug)]
pub(super) struct Subscription {
    pub(super) id: i64,
    pub(super) name: String,
    pub(super) from_beginning: bool,
    pub(super) versions: Vec<Version>,
    /// From the confirmation of a pause to the beginning of its end.
    pub(super) pauses: Vec<(Instant, Option<Instant>)>,
    /// Resumes and edits.
    pub(super) changes: Vec<Change>,
    pub(super) redrives: usize,
    pub(super) discarded: HashMap<Uuid, Instant>,
}

impl Subscription {
    pub(super) fn now(&self) -> &Version {
        &self.versions[self.versions.len() - 1]
    }

    pub(super) fn is_alive(&self) -> bool {
        self.now().ended.is_none()
    }

    fn has(&self, path: u32) -> bool {
        self.versions.iter().any(|version| version.path == path)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.pauses.last().is_some_and(|(_, until)| until.is_none())
    }

    fn attempts(&self) -> usize {
        self.versions.iter().map(|version| version.spec.schedule.len() + 1).max().unwrap_or_default()
    }

    /// When events were perhaps not owed: from an answer of 410 to the change or resume that ended it.
    fn gone(&self, requests: &[&Request]) -> Vec<(Instant, Instant)> {
        let far = Instant::now() + Duration::from_secs(3_600);
        let gone = requests.iter().filter(|request| request.status == 410);
        gone.map(|request| {
            let from = request.answered.unwrap_or(request.arrived);
            let ends = |change: &&Change| {
                (change.is_new && change.begun > request.arrived) || (change.was_gone && change.done > from)
            };
            (from, self.changes.iter().filter(ends).map(|change| change.done).min().unwrap_or(far))
        })
        .collect()
    }
}

/// One event in one request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) path: u32,
    pub(super) event: Uuid,
    pub(super) arrived: Instant,
    /// When an answer was given; none if the connection ended before.
    pub(super) answered: Option<Instant>,
    pub(super) status: u16,
}

impl Request {
    fn is_delivered(&self) -> bool {
        self.answered.is_some() && self.status / 100 == 2
    }
}

/// Everything that was done.
#[derive(Debug, Default)]
pub(super) struct History {
    pub(super) events: Vec<Event>,
    pub(super) subscriptions: Vec<Subscription>,
    /// Kills, and stops that cut attempts off.
    pub(super) kills: Vec<Instant>,
    /// Ends of relays of every kind.
    pub(super) stops: Vec<Instant>,
    /// When no relay ran.
    pub(super) silences: Vec<(Instant, Option<Instant>)>,
}

/// What was compared.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) findings: Vec<String>,
    pub(super) owed: usize,
    pub(super) copies: usize,
    /// Latest request under a version that had ended.
    pub(super) latest: Duration,
}

impl History {
    /// Compares with what a receiver has got, but for what is owed.
    pub(super) fn check(&self, requests: &[Request], permits: usize, report: &mut Report) {
        let mut routed: HashMap<Uuid, Instant> = HashMap::new();
        for request in requests {
            let first = routed.entry(request.event).or_insert(request.arrived);
            *first = (*first).min(request.arrived);
        }
        let events: HashMap<Uuid, &Event> = self.events.iter().map(|event| (event.id, event)).collect();
        for (number, subscription) in self.subscriptions.iter().enumerate() {
            let own: Vec<&Request> = requests.iter().filter(|one| subscription.has(one.path)).collect();
            let mut of_event: HashMap<Uuid, Vec<&Request>> = HashMap::new();
            let found = report.findings.len();
            for request in &own {
                of_event.entry(request.event).or_default().push(request);
                let event = events.get(&request.event).copied();
                for fault in self.may(subscription, event, request, &routed, report) {
                    let at = self.at(request.arrived);
                    report.findings.push(format!("subscription {number}: {fault}: {request:?} at {at:.3}"));
                }
            }
            self.check_answers(number, subscription, &own, report);
            for (event, own) in &of_event {
                let delivered =
                    own.iter().filter(|one| one.is_delivered()).filter_map(|one| one.answered).min();
                let first = delivered.unwrap_or_else(Instant::now);
                report.copies += own.iter().filter(|one| one.arrived > first).count();
                let failed = own.iter().filter(|one| !one.is_delivered() && one.status != 410).count();
                let most = subscription.attempts() * (subscription.redrives + 1) + self.kills.len();
                if failed > most {
                    report
                        .findings
                        .push(format!("subscription {number}: {failed} of {most} attempts of {event}"));
                }
            }
            if report.findings.len() > found {
                report.findings.push(self.describe(number, &own));
            }
        }
        let most = permits * self.kills.len();
        if report.copies > most {
            report.findings.push(format!("{} copies, at most {most}", report.copies));
        }
    }

    /// What is certainly owed, when everything has just been resumed, fixed and redriven, and what of it was
    /// not delivered.
    pub(super) fn owed(&self, requests: &[Request], report: &mut Report) {
        report.owed = 0;
        for (number, subscription) in self.subscriptions.iter().enumerate().filter(|(_, one)| one.is_alive())
        {
            let own: Vec<&Request> = requests.iter().filter(|one| subscription.has(one.path)).collect();
            let delivered: HashSet<Uuid> =
                own.iter().filter(|one| one.is_delivered()).map(|one| one.event).collect();
            let gone = subscription.gone(&own);
            let owed = self.events.iter().filter(|event| subscription.must(event, &gone));
            let (there, lost): (Vec<_>, Vec<_>) = owed.partition(|event| delivered.contains(&event.id));
            report.owed += there.len() + lost.len();
            for event in &lost {
                let at = event.committed.map(|committed| self.at(committed.0));
                let seen: Vec<_> = own.iter().filter(|one| one.event == event.id).collect();
                let fault = format!("subscription {number} lost {event:?} of {at:?}; requests: {seen:?}");
                report.findings.push(fault);
            }
            if !lost.is_empty() {
                report.findings.push(self.describe(number, &own));
            }
        }
    }

    /// Seconds since the beginning.
    fn at(&self, moment: Instant) -> f64 {
        let began = self.subscriptions.first().map_or(moment, |first| first.versions[0].made.0);
        moment.checked_duration_since(began).map_or(-1.0, |since| since.as_secs_f64())
    }

    /// The changes of a subscription, for a finding.
    fn describe(&self, number: usize, own: &[&Request]) -> String {
        let one = &self.subscriptions[number];
        let mut lines = vec![format!("subscription {number}, id {}, {}", one.id, one.name)];
        for Version { path, spec, made, ended } in &one.versions {
            let ended = ended.map(|ended| self.at(ended.1));
            lines.push(format!("{:.3} to {ended:?}: path {path}, {spec:?}", self.at(made.0)));
        }
        for (from, until) in &one.pauses {
            lines.push(format!("paused {:.3} to {:?}", self.at(*from), until.map(|until| self.at(until))));
        }
        for Change { begun, was_gone, is_new, .. } in &one.changes {
            lines.push(format!("changed {:.3}, gone: {was_gone}, new: {is_new}", self.at(*begun)));
        }
        let ends = |ends: &[Instant]| ends.iter().map(|end| self.at(*end)).collect::<Vec<_>>();
        let gone = one.gone(own);
        let gone: Vec<_> = gone.iter().map(|(from, until)| [self.at(*from), self.at(*until)]).collect();
        lines.push(format!("gone {gone:?}"));
        lines.push(format!("kills {:?}, stops {:?}", ends(&self.kills), ends(&self.stops)));
        lines.join("\n")
    }

    /// Why a request should not have been sent.
    fn may(
        &self,
        subscription: &Subscription,
        event: Option<&Event>,
        request: &Request,
        routed: &HashMap<Uuid, Instant>,
        report: &mut Report,
    ) -> Vec<&'static str> {
        let mut faults = Vec::new();
        let arrived = request.arrived;
        let Some((event, (committing, _))) = event.and_then(|event| Some((event, event.committed?))) else {
            return vec!["an event that did not commit"];
        };
        if arrived < committing {
            faults.push("before its commit");
        }
        if event.after.is_some_and(|after| arrived + CLOCKS < after) {
            faults.push("before its time");
        }
        // What was committed before and not routed may come: it was routed if somebody got it.
        let routed = routed.get(&event.id).is_some_and(|first| *first < subscription.versions[0].made.0);
        if routed && !subscription.from_beginning {
            faults.push("older than the subscription");
        }
        let mut fitting = subscription.versions.iter().filter(|version| {
            version.path == request.path
                && version.spec.is_valid()
                && version.spec.wants(event)
                && version.made.0 <= arrived
                && version.ended.is_none_or(|ended| arrived <= ended.1 + FOLLOWED)
        });
        if let Some(version) = fitting.next_back() {
            let late =
                version.ended.map_or(Duration::ZERO, |ended| arrived.saturating_duration_since(ended.1));
            report.latest = report.latest.max(late);
        } else {
            faults.push("no version with this destination wants it at this time");
        }
        if within(&subscription.pauses, arrived, FOLLOWED) {
            faults.push("during a pause");
        }
        if within(&self.silences, arrived, Duration::from_millis(500)) {
            faults.push("while no relay ran");
        }
        if subscription.discarded.get(&event.id).is_some_and(|discarded| arrived > *discarded) {
            faults.push("after it was discarded");
        }
        faults
    }

    /// What follows an answer of 410, or of 429 with `Retry-After`, until somebody resumes or changes it.
    fn check_answers(
        &self,
        number: usize,
        subscription: &Subscription,
        own: &[&Request],
        report: &mut Report,
    ) {
        for asked in own.iter().filter(|one| matches!(one.status, 410 | 429)) {
            let Some(answered) = asked.answered else { continue };
            let from = answered + FOLLOWED;
            if self.stops.iter().any(|stop| (answered..from).contains(stop)) {
                continue; // it may not have been recorded
            }
            let before = asked.arrived - FOLLOWED..asked.arrived;
            if subscription.changes.iter().any(|change| before.contains(&change.begun)) {
                continue; // it may have been sent for the version before, and binds only that
            }
            let lasts =
                if asked.status == 429 { RETRY_AFTER - 2 * CLOCKS } else { Duration::from_secs(3_600) };
            let ended =
                subscription.changes.iter().map(|change| change.begun).filter(|begun| *begun > asked.arrived);
            let until = ended.chain([answered + lasts]).min().unwrap_or(answered);
            for one in
                own.iter().filter(|one| one.path == asked.path && one.arrived > from && one.arrived < until)
            {
                let after = one.arrived - answered;
                let fault = format!("subscription {number}: {after:?} after {}: {one:?}", asked.status);
                report.findings.push(fault);
            }
        }
    }
}

impl Subscription {
    /// Whether the event is certainly owed and was to be delivered by now.
    fn must(&self, event: &Event, gone: &[(Instant, Instant)]) -> bool {
        let Some((committing, committed)) = event.committed else { return false };
        let mut since = self.versions.iter().filter(|one| one.ended.is_none_or(|ended| ended.1 > committing));
        self.is_alive()
            && (self.from_beginning || self.versions[0].made.1 < committing)
            && since.all(|version| version.spec.wants(event))
            && !self.discarded.contains_key(&event.id)
            && !gone.iter().any(|(from, until)| committed >= *from && committing <= *until)
    }
}

/// Whether a moment lies in one of these times, some time after its beginning.
fn within(times: &[(Instant, Option<Instant>)], moment: Instant, after: Duration) -> bool {
    times.iter().any(|(from, until)| moment > *from + after && until.is_none_or(|until| moment < until))
}
