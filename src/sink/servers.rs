//! The servers of one database, of which one is right at a time. Finds it, and remembers it for the next
//! connection.
//!
//! The driver knows one host. Of several hosts the last good one is tried first, then the others in their
//! order. The next is begun when one has failed, or has not answered for a moment, so a host that is down
//! costs a moment and not the whole time limit.

use std::{
    collections::VecDeque,
    io,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use sqlx::{
    Connection as _, PgConnection, Row as _,
    postgres::{PgConnectOptions, PgListener, PgPoolOptions},
};
use tokio::time::Instant;

use super::{
    Problem, address,
    plain::plain,
    session,
    sqlstate::{Class, class_of},
};

/// Longest time to find the right one of several servers. Below the 5 s of those who connect, so that they
/// learn what was wrong with each server.
const FIND_WITHIN: Duration = Duration::from_millis(4_500);
/// Time after which the next server is tried although the one before has not answered.
const NEXT_AFTER: Duration = Duration::from_millis(500);

/// Which of several servers is wanted: the values of `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The first that answers.
    Any,
    /// One that can be written to.
    ReadWrite,
    /// A standby, or a server that is read-only as a whole.
    ReadOnly,
    /// One that is no standby.
    Primary,
    /// A standby.
    Standby,
    /// A standby; the first that answers if there is none.
    PreferStandby,
}

impl Wanted {
    pub(super) const ALL: [Self; 6] =
        [Self::Any, Self::ReadWrite, Self::ReadOnly, Self::Primary, Self::Standby, Self::PreferStandby];

    /// The word of libpq for it.
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }

    pub(super) fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|wanted| wanted.word() == word)
    }

    /// Why a server with this role is not it; none: it is.
    const fn refuses(self, role: Role) -> Option<&'static str> {
        match (self, role) {
            (Self::ReadWrite | Self::Primary, Role { is_standby: true, .. }) => Some("is a standby"),
            (Self::ReadWrite, Role { is_read_only: true, .. }) => Some("is read-only"),
            (Self::ReadOnly, Role { is_standby: false, is_read_only: false }) => Some("can be written to"),
            (Self::Standby | Self::PreferStandby, Role { is_standby: false, .. }) => Some("is no standby"),
            _ => None,
        }
    }
}

/// What a server is at the moment.
#[derive(Debug, Clone, Copy)]
struct Role {
    is_standby: bool,
    is_read_only: bool,
}

/// The servers of a database. Copies share which one was the last good one.
#[derive(Debug, Clone)]
pub struct Servers {
    /// At least one, in the order of the address.
    each: Arc<[PgConnectOptions]>,
    wanted: Wanted,
    /// Index of the last good one.
    last: Arc<AtomicUsize>,
}

impl FromStr for Servers {
    type Err = Problem;

    /// Parses an address of libpq, such as `postgres://a:5432,b:5433/shop?target_session_attrs=primary`. Of
    /// several hosts one is wanted that can be written to, unless `target_session_attrs` says otherwise.
    fn from_str(address: &str) -> Result<Self, Problem> {
        let (each, wanted) = address::parse_servers(address)?;
        let wanted = wanted.unwrap_or(if each.len() > 1 { Wanted::ReadWrite } else { Wanted::Any });
        Ok(Self { each: each.into(), wanted, last: Arc::default() })
    }
}

impl From<PgConnectOptions> for Servers {
    fn from(options: PgConnectOptions) -> Self {
        Self { each: Arc::from([options]), wanted: Wanted::Any, last: Arc::default() }
    }
}

impl From<&PgConnectOptions> for Servers {
    fn from(options: &PgConnectOptions) -> Self {
        options.clone().into()
    }
}

impl From<&Self> for Servers {
    fn from(servers: &Self) -> Self {
        servers.clone()
    }
}

impl Servers {
    /// Whether there are several, of which one must be found.
    #[must_use]
    pub fn are_several(&self) -> bool {
        self.each.len() > 1
    }

    /// Which of them is wanted.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// The options of the last good one; of the first, before one was found.
    #[must_use]
    pub fn last(&self) -> &PgConnectOptions {
        &self.each[self.index()]
    }

    /// The place of the last good one among them.
    pub(crate) fn index(&self) -> usize {
        self.last.load(Ordering::Acquire).min(self.each.len() - 1)
    }

    /// The same servers with other options.
    #[must_use]
    pub fn map(&self, change: impl FnMut(PgConnectOptions) -> PgConnectOptions) -> Self {
        Self { each: self.each.iter().cloned().map(change).collect(), ..self.clone() }
    }

    /// The same servers, for who must write: instead of any, one that can be written to.
    #[must_use]
    pub(crate) fn for_writing(&self) -> Self {
        let wanted = if self.wanted == Wanted::Any { Wanted::ReadWrite } else { self.wanted };
        Self { wanted, ..self.clone() }
    }

    /// The options of the right server. A single one is not looked at.
    ///
    /// # Errors
    /// When none of several is right within 4.5 s: what is wrong with each.
    pub async fn find(&self, pooler: bool) -> Result<PgConnectOptions, sqlx::Error> {
        if self.are_several() {
            // It was asked only for its role.
            let _ = tokio::time::timeout(NEXT_AFTER, self.connect(pooler).await?.close()).await;
        }
        Ok(self.last().clone())
    }

    /// Connects to the right server, as [`session::connect`] does. A single one is taken whatever its role
    /// is.
    ///
    /// # Errors
    /// When a single one cannot be connected with; no time limit applies. When none of several is right
    /// within 4.5 s: what is wrong with each.
    pub(crate) async fn connect(&self, pooler: bool) -> Result<PgConnection, sqlx::Error> {
        if !self.are_several() {
            return Box::pin(session::connect(&self.each[0], pooler)).await;
        }
        // Apart: who connects would need a larger stack.
        match (Box::pin(self.connect_to(self.wanted, pooler)).await, self.wanted) {
            (Err(_), Wanted::PreferStandby) => Box::pin(self.connect_to(Wanted::Any, pooler)).await,
            (result, _) => result,
        }
    }

    /// Connects to the right server for LISTEN. A lost connection is reported and not replaced here, because
    /// its owner must look for what was notified meanwhile.
    ///
    /// # Errors
    /// As [`Servers::connect`].
    pub(crate) async fn listener(&self) -> Result<PgListener, sqlx::Error> {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_with(self.find(false).await?)
            .await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.eager_reconnect(false);
        Ok(listener)
    }

    async fn connect_to(&self, wanted: Wanted, pooler: bool) -> Result<PgConnection, sqlx::Error> {
        let first = self.index();
        let others = (0..self.each.len()).filter(|index| *index != first);
        let mut left: VecDeque<usize> = std::iter::once(first).chain(others).collect();
        let trying = |index: usize| async move { (index, self.try_one(index, wanted, pooler).await) };
        let (mut attempts, mut failures) = (FuturesUnordered::new(), Vec::new());
        let deadline = Instant::now() + FIND_WITHIN;
        let mut next_at = Instant::now();
        loop {
            tokio::select! {
                biased;
                Some((index, result)) = attempts.next(), if !attempts.is_empty() => match result {
                    Ok(connection) => {
                        self.last.store(index, Ordering::Release);
                        return Ok(connection);
                    }
                    Err(error) => {
                        failures.push((index, error));
                        next_at = Instant::now();
                    }
                },
                () = tokio::time::sleep_until(next_at.min(deadline)), if !left.is_empty() => {
                    attempts.extend(left.pop_front().map(trying));
                    next_at = Instant::now() + NEXT_AFTER;
                }
                () = tokio::time::sleep_until(deadline) => return Err(self.none(failures)),
            }
            if failures.len() == self.each.len() {
                return Err(self.none(failures));
            }
        }
    }

    /// Connects to one server, if it has the wanted role.
    async fn try_one(&self, index: usize, wanted: Wanted, pooler: bool) -> Result<PgConnection, sqlx::Error> {
        let mut connection = session::connect(&self.each[index], pooler).await?;
        let row = sqlx::raw_sql(include_str!("role.sql")).fetch_one(&mut connection).await?;
        let role =
            Role { is_standby: row.try_get("is_standby")?, is_read_only: row.try_get("is_read_only")? };
        match wanted.refuses(role) {
            Some(why) => Err(sqlx::Error::Configuration(why.into())),
            None => Ok(connection),
        }
    }

    /// What is wrong with each of them. An answer that a person must act on stands for all, so that it is
    /// classified.
    fn none(&self, failures: Vec<(usize, sqlx::Error)>) -> sqlx::Error {
        let mut words = vec!["does not answer".to_owned(); self.each.len()];
        for (index, error) in failures {
            if !matches!(class_of(&error), None | Some(Class::Unavailable)) {
                return error;
            }
            words[index] = words_of(plain(error));
        }
        let of_one = |(index, words): (usize, &String)| format!("{}: {words}", self.place(index));
        let words: Vec<String> = words.iter().enumerate().map(of_one).collect();
        let text = format!("no server with {} was found: {}", self.wanted.word(), words.join("; "));
        sqlx::Error::Io(io::Error::new(io::ErrorKind::NotConnected, text))
    }

    /// Host and port of a server.
    fn place(&self, index: usize) -> String {
        let options = &self.each[index];
        match options.get_socket() {
            Some(socket) => format!("{}:{}", socket.display(), options.get_port()),
            None => format!("{}:{}", options.get_host(), options.get_port()),
        }
    }
}

/// What is wrong, without who says so.
fn words_of(error: sqlx::Error) -> String {
    match error {
        sqlx::Error::Io(error) => error.to_string(),
        sqlx::Error::Configuration(error) => error.to_string(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_attribute_takes_the_roles_that_it_names() {
        let roles = [(false, false), (false, true), (true, false)]
            .map(|(is_standby, is_read_only)| Role { is_standby, is_read_only });
        for (word, taken) in [
            ("any", [true, true, true]),
            ("read-write", [true, false, false]),
            ("read-only", [false, true, true]),
            ("primary", [true, true, false]),
            ("standby", [false, false, true]),
            ("prefer-standby", [false, false, true]),
        ] {
            let wanted = Wanted::of(word).unwrap();
            assert_eq!(roles.map(|role| wanted.refuses(role).is_none()), taken, "{word}");
        }
        assert_eq!(Wanted::of("master"), None);
    }

    #[test]
    fn who_must_write_wants_no_other_server() {
        let wanted = |address: &str| {
            let servers: Servers = address.parse().unwrap();
            (servers.wanted(), servers.for_writing().wanted())
        };
        assert_eq!(wanted("postgres://a,b/d"), (Wanted::ReadWrite, Wanted::ReadWrite));
        assert_eq!(wanted("postgres://a,b/d?target_session_attrs=any"), (Wanted::Any, Wanted::ReadWrite));
        assert_eq!(
            wanted("postgres://a,b/d?target_session_attrs=primary"),
            (Wanted::Primary, Wanted::Primary)
        );
    }
}
