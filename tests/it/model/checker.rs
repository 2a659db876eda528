//! Compares what publishers and destinations saw with what the database holds at the end. It knows nothing of
//! relays and uses none of the product's code: the matcher is its own.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{
    database::{Data, Millis},
    history::MAX_ATTEMPTS,
};

/// An event of a committed transaction, in the order of commits.
#[derive(Debug, Clone)]
pub(crate) struct Commit {
    pub(crate) event: Uuid,
    pub(crate) topic: &'static str,
    pub(crate) organization: Option<&'static str>,
    pub(crate) key: Option<&'static str>,
    pub(crate) is_synchronous: bool,
}

/// A subscription, and how many events were committed before it.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    pub(crate) id: i64,
    pub(crate) topic: &'static str,
    pub(crate) organization: Option<&'static str>,
    pub(crate) since: usize,
    pub(crate) is_ordered: bool,
}

/// A request at a destination.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) event: Uuid,
    pub(crate) subscription: i64,
    #[expect(dead_code, reason = "shown when a finding is printed")]
    pub(crate) relay: usize,
    pub(crate) begun: Millis,
    /// When the destination acted.
    pub(crate) effect: Option<Millis>,
}

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Term {
    /// Owed, and neither delivered nor given up nor waiting.
    Lost,
    /// Sent, and not in the log or not wanted.
    Phantom,
    /// More copies than faults explain.
    Duplicated,
    OutOfOrder,
    /// Still waiting long after all faults have ended.
    Stuck,
    /// Sent more often than it may be.
    Excess,
    /// Sent during a pause.
    Paused,
    /// Sent to an address inside.
    Trapped,
}

/// Everything that was seen.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) commits: Vec<Commit>,
    pub(crate) wishes: Vec<Wish>,
    pub(crate) requests: Vec<Request>,
    /// Faults, and how many copies each may cause.
    pub(crate) faults: Vec<(&'static str, usize)>,
    /// Attempts that ended without a readable answer.
    pub(crate) ambiguous: usize,
    pub(crate) pauses: Vec<(i64, Millis, Option<Millis>)>,
    /// Requests to an address inside.
    pub(crate) trapped: usize,
    pub(crate) deaths_by_poison: usize,
    /// Some relay did not hear the others for a while.
    pub(crate) is_split: bool,
    /// The clock of the server jumped: what a relay has begun, another may begin, too.
    pub(crate) clock_jumped: bool,
}

/// How many times what a poisoned event kills may be sent for one subscription.
const POISONED: usize = 5;
/// Time within which relays follow a pause.
const FOLLOWED: Millis = 2_500;

/// The manual's definition of a match.
fn matches(pattern: &[&str], topic: &[&str]) -> bool {
    match (pattern, topic) {
        ([], []) => true,
        (["**", rest @ ..], _) => {
            matches(rest, topic) || topic.split_first().is_some_and(|(_, tail)| matches(pattern, tail))
        }
        ([segment, rest @ ..], [first, tail @ ..]) => {
            (*segment == "*" || segment == first) && matches(rest, tail)
        }
        ([], [_, ..]) | ([_, ..], []) => false,
    }
}

impl Wish {
    fn wants(&self, commit: &Commit) -> bool {
        let pattern: Vec<&str> = self.topic.split('.').collect();
        let topic: Vec<&str> = commit.topic.split('.').collect();
        matches(&pattern, &topic) && (self.organization.is_none() || self.organization == commit.organization)
    }
}

impl Journal {
    pub(crate) fn fault(&mut self, kind: &'static str, copies: usize) {
        self.faults.push((kind, copies));
    }

    /// What is wrong, a line each.
    pub(crate) fn check(&self, poison: Option<Uuid>, data: &Data, is_over: bool) -> Vec<(Term, String)> {
        let mut found = Vec::new();
        let log: BTreeMap<Uuid, i64> = data.log.iter().map(|(at, (_, event))| (event.id, *at)).collect();
        let dead: BTreeSet<(Uuid, i64)> =
            data.dead.values().filter_map(|letter| Some((letter.event?, letter.subscription))).collect();
        let mut of_pair: BTreeMap<(i64, Uuid), Vec<&Request>> = BTreeMap::new();
        for request in &self.requests {
            of_pair.entry((request.subscription, request.event)).or_default().push(request);
        }
        let is_delivered = |pair: &(i64, Uuid)| {
            of_pair.get(pair).is_some_and(|all| all.iter().any(|one| one.effect.is_some()))
        };
        for (at, commit) in self.commits.iter().enumerate() {
            if !log.contains_key(&commit.event) {
                if commit.is_synchronous {
                    found.push((Term::Lost, format!("{commit:?} is not in the log")));
                }
                continue;
            }
            for wish in self.wishes.iter().filter(|wish| wish.since <= at && wish.wants(commit)) {
                let pair = (wish.id, commit.event);
                if !is_delivered(&pair) && !dead.contains(&(commit.event, wish.id)) {
                    let term = if is_over { Term::Lost } else { Term::Stuck };
                    let position = log.get(&commit.event);
                    found.push((term, format!("{commit:?} at {position:?} for {wish:?}")));
                }
            }
        }
        if !is_over && found.is_empty() {
            found.push((Term::Stuck, "something is outstanding for ever".to_owned()));
        }
        self.check_requests(poison, &log, &of_pair, &mut found);
        self.check_order(&log, &dead, &of_pair, &mut found);
        if self.trapped > 0 {
            found.push((Term::Trapped, format!("{} requests", self.trapped)));
        }
        found
    }

    fn check_requests(
        &self,
        poison: Option<Uuid>,
        log: &BTreeMap<Uuid, i64>,
        of_pair: &BTreeMap<(i64, Uuid), Vec<&Request>>,
        found: &mut Vec<(Term, String)>,
    ) {
        let commits: BTreeMap<Uuid, &Commit> = self.commits.iter().map(|one| (one.event, one)).collect();
        let mut copies = 0;
        for ((subscription, event), requests) in of_pair {
            let wish = self.wishes.iter().find(|wish| wish.id == *subscription);
            let is_wanted =
                wish.is_some_and(|wish| commits.get(event).is_some_and(|commit| wish.wants(commit)));
            if !log.contains_key(event) || !is_wanted {
                found.push((Term::Phantom, format!("{:?}", requests[0])));
            }
            copies += requests.iter().filter(|one| one.effect.is_some()).count().saturating_sub(1);
            let most = match poison == Some(*event) {
                true => POISONED + self.faults.len() - self.deaths_by_poison.min(self.faults.len()),
                false => MAX_ATTEMPTS as usize + self.faults.len(),
            };
            if requests.len() > most {
                found.push((
                    Term::Excess,
                    format!("{} requests, at most {most}: {:?}", requests.len(), requests[0]),
                ));
            }
        }
        let allowed = self.faults.iter().map(|(_, copies)| copies).sum::<usize>() + self.ambiguous;
        if copies > allowed {
            let repeated =
                of_pair.values().filter(|all| all.iter().filter(|one| one.effect.is_some()).count() > 1);
            let repeated: Vec<_> = repeated.take(2).collect();
            found.push((Term::Duplicated, format!("{copies} copies, at most {allowed}: {repeated:#?}")));
        }
        for (id, from, until) in self.pauses.iter().filter(|_| !self.is_split) {
            let until = until.unwrap_or(Millis::MAX);
            let during =
                |one: &&Request| one.subscription == *id && one.begun > from + FOLLOWED && one.begun < until;
            if let Some(request) = self.requests.iter().find(during) {
                found.push((Term::Paused, format!("{request:?}")));
            }
        }
    }

    /// Of a key, each event begins after those that were committed before it have ended for good.
    fn check_order(
        &self,
        log: &BTreeMap<Uuid, i64>,
        dead: &BTreeSet<(Uuid, i64)>,
        of_pair: &BTreeMap<(i64, Uuid), Vec<&Request>>,
        found: &mut Vec<(Term, String)>,
    ) {
        for wish in self.wishes.iter().filter(|wish| wish.is_ordered && !self.clock_jumped) {
            let mut keys: BTreeMap<&str, Vec<&Commit>> = BTreeMap::new();
            for commit in self.commits.iter().skip(wish.since).filter(|commit| wish.wants(commit)) {
                if let Some(key) = commit.key.filter(|_| log.contains_key(&commit.event)) {
                    keys.entry(key).or_default().push(commit);
                }
            }
            for commits in keys.values() {
                let mut delivered = Millis::MIN;
                let mut newest_begun: Option<(Millis, &Request)> = None;
                for commit in commits {
                    let Some(requests) = of_pair.get(&(wish.id, commit.event)) else { continue };
                    for request in requests {
                        if request.begun < delivered {
                            let text = format!("{request:?} began before an earlier one was delivered");
                            found.push((Term::OutOfOrder, text));
                        }
                    }
                    if dead.contains(&(commit.event, wish.id)) {
                        continue;
                    }
                    if let Some(first) = requests.iter().filter_map(|one| one.effect).min() {
                        delivered = delivered.max(first);
                    }
                    // A repeat of an earlier one after a later one has begun.
                    let last = requests.iter().map(|one| (one.begun, *one)).max_by_key(|(at, _)| *at);
                    let first = requests.iter().map(|one| one.begun).min();
                    if let (Some((begun, newest)), Some(first)) = (newest_begun, first)
                        && begun > first
                    {
                        let text = format!("{newest:?} was sent after {commit:?} had begun");
                        found.push((Term::OutOfOrder, text));
                    }
                    newest_begun = newest_begun.into_iter().chain(last).max_by_key(|(at, _)| *at);
                }
            }
        }
    }
}
