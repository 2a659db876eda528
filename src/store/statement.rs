//! How the relay runs a statement: within a time limit, on its connection, prepared unless a pooler is
//! between.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::{
    Connection as _, Encode, FromRow, PgConnection, Postgres, Type,
    postgres::{PgArguments, PgRow},
    query::Query,
};

use super::{
    connection::{Pin, Reserved, Settler, Store},
    error::{Error, Kind},
};

/// Longest time for a statement that reads much and delays nobody.
const PATIENT_LIMIT: Duration = Duration::from_secs(3_600);

/// A statement with its arguments. It runs when its rows are asked for, or with [`Statement::execute`].
#[must_use = "a statement does nothing before it is run"]
pub(super) struct Statement<'s> {
    store: &'s Store,
    /// What the relay is doing, for the text of an error: `claiming deliveries`.
    doing: &'static str,
    /// The connection it runs on; none: any from the pool.
    on: Option<Reserved>,
    /// It fails on another connection than this one.
    pin: Option<Pin>,
    query: Query<'static, Postgres, PgArguments>,
}

impl Store {
    /// A statement without arguments that runs on any connection of the pool.
    pub(super) fn statement(&self, doing: &'static str, sql: &'static str) -> Statement<'_> {
        Statement { store: self, doing, on: None, pin: None, query: sqlx::query(sql) }
    }

    /// Runs one statement that may take up to an hour, in a transaction of its own, and reads its first row.
    ///
    /// # Errors
    /// As [`Store::limited`].
    pub(super) async fn patient<T>(
        &self,
        doing: &'static str,
        query: Query<'static, Postgres, PgArguments>,
        read: impl FnOnce(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        if self.guard.is_tripped() {
            return Err(self.tripped_while(doing));
        }
        let work = async {
            let mut session = self.session(None).await?;
            let mut transaction = session.connection().begin().await?;
            let limit = "select set_config('statement_timeout', $1, true)";
            let limit = sqlx::query(limit).bind(format!("{}s", PATIENT_LIMIT.as_secs()));
            limit.persistent(false).execute(&mut *transaction).await?;
            let row = query.fetch_one(&mut *transaction).await?;
            transaction.commit().await?;
            session.finish().await?;
            read(&row)
        };
        let result = match tokio::time::timeout(PATIENT_LIMIT, work).await {
            Ok(Err(error)) => Err(self.explained(doing, error).await),
            Ok(result) => result.map_err(|error| Error::database(doing, error)),
            Err(_) => Err(Error::deadline(doing, PATIENT_LIMIT.as_secs())),
        };
        if result.is_err() && self.guard.is_tripped() {
            return Err(self.tripped_while(doing));
        }
        if result.as_ref().is_err_and(|error| error.kind() == Kind::Connection) {
            self.replace_pool();
        }
        result
    }

    /// Opens the connections that keep what is leased, those of the settlers and of renewals, before others
    /// hold every one.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn open_to_keep(&self) -> Result<(), Error> {
        let [first, second] = Settler::ALL.map(Reserved::Settle);
        for reserved in [first, second, Reserved::Renew] {
            self.pin(reserved).await?;
        }
        Ok(())
    }

    /// Opens a reserved connection, if it is not open. None with a pooler, which chooses the connection.
    pub(super) async fn pin(&self, on: Reserved) -> Result<Option<Pin>, Error> {
        self.limited("connecting to the database", async {
            if self.is_persistent() { Ok(self.session(Some(on)).await?.pin()) } else { Ok(None) }
        })
        .await
    }
}

impl Statement<'_> {
    /// Runs it on a reserved connection.
    pub(super) fn on(self, reserved: Reserved) -> Self {
        Self { on: Some(reserved), ..self }
    }

    /// Runs it on this connection or not at all.
    pub(super) fn pinned(self, pin: Option<Pin>) -> Self {
        Self { pin, ..self }
    }

    /// Adds the next argument.
    pub(super) fn bind<'t, T: Encode<'t, Postgres> + Type<Postgres>>(self, value: T) -> Self {
        Self { query: self.query.bind(value), ..self }
    }

    /// Adds an array as the next argument: one value of each item, in their order.
    pub(super) fn bind_each<'i, I, T>(self, items: &'i [I], value: impl Fn(&'i I) -> T) -> Self
    where
        Vec<T>: Encode<'i, Postgres> + Type<Postgres>,
    {
        self.bind(items.iter().map(value).collect::<Vec<T>>())
    }

    /// Runs it and ignores its rows.
    pub(super) async fn execute(self) -> Result<(), Error> {
        self.all(|_| Ok(())).await
    }

    /// Runs it and reads its rows one by one, as they arrive: there is no more of them in memory than what is
    /// read.
    pub(super) async fn rows<T>(
        self,
        mut read: impl FnMut(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<Vec<T>, Error> {
        let Self { store, doing, on, pin, query } = self;
        store
            .limited(doing, async {
                let mut session = store.session(on).await?;
                if pin.is_some() && session.pin() != pin {
                    return Err(replaced());
                }
                let mut rows = query.persistent(store.is_persistent()).fetch(session.connection());
                let mut all = Ok(Vec::new());
                // The rows after one that cannot be read are taken from the connection too.
                while let Some(row) = rows.try_next().await? {
                    if let Ok(so_far) = &mut all {
                        match read(&row) {
                            Ok(one) => so_far.push(one),
                            Err(error) => all = Err(error),
                        }
                    }
                }
                drop(rows);
                session.finish().await?;
                all
            })
            .await
    }

    /// Runs it and reads its first row; it is an error when there is none.
    pub(super) async fn row<T>(
        self,
        read: impl FnOnce(&PgRow) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        self.all(|rows| read(first(rows)?)).await
    }

    /// Runs it and returns whether there was a row.
    pub(super) async fn any(self) -> Result<bool, Error> {
        self.all(|rows| Ok(!rows.is_empty())).await
    }

    /// Runs it and reads its rows as a whole.
    pub(super) async fn all<T>(
        self,
        read: impl FnOnce(&[PgRow]) -> Result<T, sqlx::Error>,
    ) -> Result<T, Error> {
        let Self { store, doing, on, pin, .. } = self;
        store
            .limited(doing, async {
                let mut session = store.session(on).await?;
                if pin.is_some() && session.pin() != pin {
                    return Err(replaced());
                }
                let rows = self.fetch(session.connection()).await?;
                session.finish().await?;
                read(&rows)
            })
            .await
    }

    async fn fetch(self, connection: &mut PgConnection) -> Result<Vec<PgRow>, sqlx::Error> {
        self.query.persistent(self.store.is_persistent()).fetch_all(connection).await
    }
}

/// Runs statements in one commit, within one time limit, on the connection of the first, and reads all their
/// rows one by one.
pub(super) async fn rows_of_all<T>(
    mut statements: Vec<Statement<'_>>,
    read: impl Fn(&PgRow) -> Result<T, sqlx::Error>,
) -> Result<Vec<T>, Error> {
    let Some(&Statement { store, doing, on, .. }) = statements.first() else { return Ok(Vec::new()) };
    if statements.len() == 1 {
        // A single statement is a commit of its own and saves two round trips.
        return statements.remove(0).rows(read).await;
    }
    store
        .limited(doing, async {
            let mut session = store.session(on).await?;
            let mut transaction = session.connection().begin().await?;
            let mut rows = Vec::new();
            for statement in statements {
                rows.extend(statement.fetch(&mut transaction).await?);
            }
            transaction.commit().await?;
            session.finish().await?;
            rows.iter().map(read).collect()
        })
        .await
}

/// The connection that a statement depends on is gone.
fn replaced() -> sqlx::Error {
    let words = "the connection was replaced after the events were read";
    sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, words))
}

/// The first row of a statement that always returns one.
pub(super) fn first(rows: &[PgRow]) -> Result<&PgRow, sqlx::Error> {
    rows.first().ok_or(sqlx::Error::RowNotFound)
}

/// Reads a row by the names of its columns.
pub(super) fn by_name<T: for<'r> FromRow<'r, PgRow>>(row: &PgRow) -> Result<T, sqlx::Error> {
    T::from_row(row)
}
