//! Which database this is, and whether the outbox belongs to it. A copy of an outbox would send what the
//! original sends, and a relay remembers what a database that was set back does not know.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgConnection};
use tokio::sync::{Notify, watch};

use super::statement::by_name;

/// A standby that is promoted may lack the last commits. What lacks more than this was restored from a
/// backup.
const TAIL: Duration = Duration::from_secs(60);

/// Why a relay may not use its database now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trip {
    /// The outbox belongs to another database: nothing is sent until `outbox.adopt`. Why, as a sentence.
    Fenced(String),
    /// The database lacks the commits of so long, which this relay saw: it forgets what it knows.
    SetBack(Duration),
}

/// What the database is, beside what is recorded in it.
#[derive(Debug, FromRow)]
pub(super) struct Found {
    found_system_identifier: i64,
    found_database_oid: i64,
    /// None on a standby, and where a provider does not tell.
    found_timeline: Option<i32>,
    is_in_recovery: bool,
    system_identifier: Option<i64>,
    database_oid: Option<i64>,
    environment: Option<String>,
    timeline: Option<i32>,
    set_back: Option<String>,
    is_restored: bool,
    step: i64,
    transactions_went_back: bool,
    positions_went_back: bool,
    /// When this relay reported last.
    reported_at: Option<DateTime<Utc>>,
}

/// How a database stands to the outbox in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The outbox belongs to it.
    Known,
    /// No relay has run in it yet.
    New,
    /// It belongs to it, and a standby was promoted since.
    Promoted,
    /// It lacks the commits of so long, which this relay saw.
    SetBack(Duration),
    /// The outbox belongs to another one. Why, as a sentence.
    Foreign(String),
}

impl Found {
    pub(super) async fn read(connection: &mut PgConnection, relay: &str) -> Result<Self, sqlx::Error> {
        let query = sqlx::query(sql!("relay/read_identity")).persistent(false).bind(relay);
        by_name(&query.fetch_one(connection).await?)
    }

    /// Whether the server is a standby, which may lack what the primary has.
    pub(super) fn is_standby(&self) -> bool {
        self.is_in_recovery
    }

    fn standing(&self, environment: &str, seen: &Seen) -> Standing {
        if let Some(why) = self.foreign(environment) {
            return Standing::Foreign(format!(
                "{why}; nothing is sent. Run `pgoutbox adopt --keep-pending` to deliver here what was not \
                 delivered, or `pgoutbox adopt --discard-pending` to deliver only what is published from now on"
            ));
        }
        let reports = seen.reported_at.zip(self.reported_at);
        let lacks = reports.and_then(|(ours, theirs)| (ours - theirs).to_std().ok());
        match (lacks, self.system_identifier) {
            (Some(lacks), _) if !lacks.is_zero() => Standing::SetBack(lacks),
            // Its reports are missing, too, if it was set back to before this relay began.
            _ if self.step < seen.step => Standing::SetBack(match self.reported_at {
                Some(_) => Duration::ZERO,
                None => seen.reported_for(),
            }),
            (_, None) => Standing::New,
            _ if self.found_timeline.is_some() && self.found_timeline != self.timeline => Standing::Promoted,
            _ => Standing::Known,
        }
    }

    /// Why the outbox does not belong to this database, up to the end of the sentence.
    fn foreign(&self, ours: &str) -> Option<String> {
        let differs = |kept: Option<i64>, found: i64| kept.is_some_and(|kept| kept != found);
        if self.is_restored {
            return Some("the outbox was restored from a dump".to_owned());
        }
        if differs(self.system_identifier, self.found_system_identifier) {
            return Some(
                "the outbox belongs to another cluster (a copy, or upgraded with pg_upgrade)".to_owned(),
            );
        }
        if differs(self.database_oid, self.found_database_oid) {
            return Some("the outbox belongs to another database (a copy)".to_owned());
        }
        if let Some(theirs) = self.environment.as_deref().filter(|theirs| *theirs != ours) {
            return Some(format!(
                "the outbox belongs to the environment {theirs:?} and relay.environment is {ours:?}"
            ));
        }
        if self.transactions_went_back {
            return Some("transaction ids are lower than those of events that were routed".to_owned());
        }
        if self.positions_went_back {
            return Some(
                "positions of new events would be lower than those of events that were routed".to_owned(),
            );
        }
        self.set_back.clone()
    }
}

/// What this relay saw committed.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    step: i64,
    first_report: Option<DateTime<Utc>>,
    reported_at: Option<DateTime<Utc>>,
}

impl Seen {
    /// Time between the first and the last report.
    fn reported_for(&self) -> Duration {
        let reports = self.first_report.zip(self.reported_at);
        reports.and_then(|(first, last)| (last - first).to_std().ok()).unwrap_or_default()
    }
}

/// Why relays of this environment send nothing from the database; none: they may send.
///
/// # Errors
/// Those of the database.
pub async fn why_fenced(
    connection: &mut PgConnection,
    environment: &str,
) -> Result<Option<String>, sqlx::Error> {
    let standing = Found::read(connection, "").await?.standing(environment, &Seen::default());
    Ok(if let Standing::Foreign(why) = standing { Some(why) } else { None })
}

/// Whether no relay has run in the database yet, so that the outbox belongs to whichever runs first.
///
/// # Errors
/// Those of the database.
pub async fn is_new(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    Ok(Found::read(connection, "").await?.system_identifier.is_none())
}

/// Stands before every connection of a relay.
#[derive(Debug)]
pub(super) struct Guard {
    environment: String,
    seen: Mutex<Seen>,
    /// The timeline that the database had when it was looked at last.
    timeline: Mutex<Option<i32>>,
    /// The newest change of it that nobody was told of.
    promotion: Mutex<Option<Promotion>>,
    promoted: Notify,
    trip: watch::Sender<Option<Trip>>,
}

/// A change of the database's timeline: a standby was promoted, or the database restored in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// Timeline before.
    pub from: i32,
    /// Timeline now.
    pub to: i32,
}

impl Guard {
    pub(super) fn new(environment: String) -> Self {
        Self {
            environment,
            seen: Mutex::default(),
            timeline: Mutex::default(),
            promotion: Mutex::default(),
            promoted: Notify::new(),
            trip: watch::Sender::new(None),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was seen so far. A database that is looked at afterwards has it.
    pub(super) fn seen_so_far(&self) -> Seen {
        self.seen().clone()
    }

    /// Notes a step of the cursor that is committed.
    pub(super) fn saw_step(&self, step: i64) {
        let mut seen = self.seen();
        seen.step = seen.step.max(step);
    }

    /// Notes a report of this relay that is committed.
    pub(super) fn saw_report(&self, at: DateTime<Utc>) {
        let mut seen = self.seen();
        seen.first_report.get_or_insert(at);
        seen.reported_at = Some(at);
    }

    pub(super) fn trip(&self) -> Option<Trip> {
        self.trip.borrow().clone()
    }

    pub(super) fn is_tripped(&self) -> bool {
        self.trip.borrow().is_some()
    }

    /// Waits until the database may no longer be used.
    pub(super) async fn tripped(&self) {
        let mut trip = self.trip.subscribe();
        // The sender lives as long as this.
        let _ = trip.wait_for(Option::is_some).await;
    }

    /// Judges a database by what had been seen before it was looked at, and remembers why it may not be used.
    /// Only [`Guard::forget`] lifts that.
    pub(super) fn judge(&self, found: &Found, seen: &Seen) -> Standing {
        let standing = found.standing(&self.environment, seen);
        match &standing {
            Standing::Foreign(why) => {
                self.trip.send_replace(Some(Trip::Fenced(why.clone())));
            }
            Standing::SetBack(lacks) => {
                let set_back = Trip::SetBack(*lacks);
                self.trip.send_if_modified(|trip| trip.is_none().then(|| *trip = Some(set_back)).is_some());
            }
            Standing::Known | Standing::New | Standing::Promoted => {}
        }
        if !matches!(standing, Standing::Foreign(_)) {
            self.see_timeline(found);
        }
        standing
    }

    fn see_timeline(&self, found: &Found) {
        let Some(to) = found.found_timeline else { return };
        let before = self.timeline.lock().unwrap_or_else(PoisonError::into_inner).replace(to);
        // What relays recorded counts for the first look.
        if let Some(from) = before.or(found.timeline).filter(|from| *from != to) {
            *self.promotion.lock().unwrap_or_else(PoisonError::into_inner) = Some(Promotion { from, to });
            self.promoted.notify_one();
        }
    }

    /// The change of the timeline that nobody was told of.
    fn take_promotion(&self) -> Option<Promotion> {
        self.promotion.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Waits for a change of the timeline. One caller is told of each.
    pub(super) async fn promoted(&self) -> Promotion {
        loop {
            if let Some(promotion) = self.take_promotion() {
                return promotion;
            }
            self.promoted.notified().await;
        }
    }

    /// Rows are missing that say whose the outbox is and how far it was routed: nothing is sent before the
    /// inspection finds them again.
    pub(super) fn lacks_rows(&self) {
        let why = "the row of outbox.cursor or of outbox.identity is missing; run `pgoutbox migrate`";
        let fenced = Trip::Fenced(why.to_owned());
        self.trip.send_if_modified(|trip| trip.is_none().then(|| *trip = Some(fenced)).is_some());
    }

    /// Forgets what was seen and why the database could not be used: the relay begins anew.
    pub(super) fn forget(&self) {
        *self.seen() = Seen::default();
        self.trip.send_replace(None);
    }

    pub(super) fn environment(&self) -> &str {
        &self.environment
    }
}

/// Why nothing may be sent from a database that lacks the commits of so long; none for what a promoted
/// standby may lack.
pub(super) fn set_back(lacks: Duration) -> Option<String> {
    (lacks > TAIL).then(|| {
        format!("the database was set back by {} s (restored from a backup in place)", lacks.as_secs())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Found {
        Found {
            found_system_identifier: 7,
            found_database_oid: 5,
            found_timeline: Some(1),
            is_in_recovery: false,
            system_identifier: Some(7),
            database_oid: Some(5),
            environment: Some("production".to_owned()),
            timeline: Some(1),
            set_back: None,
            is_restored: false,
            step: 10,
            transactions_went_back: false,
            positions_went_back: false,
            reported_at: None,
        }
    }

    fn standing(found: &Found) -> Standing {
        found.standing("production", &Seen::default())
    }

    fn why(found: &Found) -> String {
        match standing(found) {
            Standing::Foreign(why) => why,
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn an_outbox_belongs_to_the_database_that_it_names() {
        assert_eq!(standing(&found()), Standing::Known);
        let never = Found { system_identifier: None, database_oid: None, environment: None, ..found() };
        assert_eq!(standing(&never), Standing::New);
        assert_eq!(standing(&Found { found_timeline: Some(2), ..found() }), Standing::Promoted);
        assert_eq!(standing(&Found { found_timeline: None, ..found() }), Standing::Known, "it is not told");
    }

    #[test]
    fn a_copy_is_named_for_what_it_is_and_what_to_do_is_said() {
        for (copy, words) in [
            (Found { is_restored: true, ..found() }, "restored from a dump"),
            (Found { is_restored: true, system_identifier: None, ..found() }, "restored from a dump"),
            (Found { found_system_identifier: 8, ..found() }, "another cluster"),
            (Found { found_database_oid: 6, ..found() }, "another database"),
            (Found { environment: Some("staging".to_owned()), ..found() }, "environment \"staging\""),
            (Found { transactions_went_back: true, ..found() }, "transaction ids"),
            (Found { positions_went_back: true, ..found() }, "positions"),
            (Found { set_back: Some("it was set back".to_owned()), ..found() }, "set back"),
        ] {
            let why = why(&copy);
            assert!(why.contains(words) && why.contains("pgoutbox adopt --keep-pending"), "{why}");
        }
    }

    #[test]
    fn what_lacks_commits_that_were_seen_was_set_back() {
        let at = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let first = at - chrono::TimeDelta::seconds(600);
        let seen = Seen { step: 10, first_report: Some(first), reported_at: Some(at) };
        let standing = |found: &Found| found.standing("production", &seen);
        assert_eq!(standing(&Found { reported_at: Some(at), ..found() }), Standing::Known);
        assert_eq!(standing(&Found { reported_at: None, ..found() }), Standing::Known);
        let older = Found { reported_at: Some(at - chrono::TimeDelta::seconds(90)), ..found() };
        assert_eq!(standing(&older), Standing::SetBack(Duration::from_secs(90)));
        let tail = Found { step: 9, reported_at: Some(at), ..found() };
        assert_eq!(standing(&tail), Standing::SetBack(Duration::ZERO));
        let before_it_began = Found { step: 9, reported_at: None, ..found() };
        assert_eq!(standing(&before_it_began), Standing::SetBack(Duration::from_secs(600)));
        assert_eq!(set_back(Duration::from_secs(60)), None);
        assert!(set_back(Duration::from_secs(90)).is_some());
    }

    #[test]
    fn each_change_of_the_timeline_is_told_once() {
        let guard = Guard::new("production".to_owned());
        let told = |found: Found| {
            guard.judge(&found, &guard.seen_so_far());
            guard.take_promotion()
        };
        assert_eq!(told(found()), None);
        assert_eq!(told(Found { found_timeline: None, ..found() }), None, "a standby");
        let promoted = || Found { found_timeline: Some(2), ..found() };
        assert_eq!(told(promoted()), Some(Promotion { from: 1, to: 2 }));
        assert_eq!(told(promoted()), None);
        let before_it_began = Guard::new("production".to_owned());
        before_it_began.judge(&promoted(), &Seen::default());
        assert_eq!(before_it_began.take_promotion(), Some(Promotion { from: 1, to: 2 }));
    }

    #[test]
    fn a_guard_stays_tripped_until_the_relay_begins_anew() {
        let guard = Guard::new("production".to_owned());
        guard.saw_step(12);
        let judge = |found: &Found| guard.judge(found, &guard.seen_so_far());
        assert_eq!(judge(&found()), Standing::SetBack(Duration::ZERO));
        assert_eq!(guard.trip(), Some(Trip::SetBack(Duration::ZERO)));
        judge(&Found { step: 13, ..found() });
        assert!(guard.is_tripped(), "what the relay knows is old all the same");
        judge(&Found { is_restored: true, ..found() });
        assert!(matches!(guard.trip(), Some(Trip::Fenced(_))));
        judge(&found());
        assert!(matches!(guard.trip(), Some(Trip::Fenced(_))), "it may be one of two databases");
        guard.forget();
        assert_eq!((judge(&found()), guard.trip()), (Standing::Known, None));
    }
}
