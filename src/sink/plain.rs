//! Errors of PostgreSQL in its own words. The driver adds "at line 3655", a line of the source code of
//! PostgreSQL, which everybody takes for a line of their own.

use std::{borrow::Cow, error::Error, fmt};

use sqlx::error::{DatabaseError, ErrorKind};

/// The error without the line; otherwise the same.
pub(crate) fn plain(error: sqlx::Error) -> sqlx::Error {
    match error {
        sqlx::Error::Database(answer) => sqlx::Error::Database(Box::new(Plain(answer))),
        other => other,
    }
}

/// An answer of the server that is shown as its message alone.
#[derive(Debug)]
struct Plain(Box<dyn DatabaseError>);

impl fmt::Display for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl Error for Plain {}

impl DatabaseError for Plain {
    fn message(&self) -> &str {
        self.0.message()
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.0.code()
    }

    fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
        self.0.as_error()
    }

    fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
        self.0.as_error_mut()
    }

    fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
        self.0.into_error()
    }

    fn constraint(&self) -> Option<&str> {
        self.0.constraint()
    }

    fn table(&self) -> Option<&str> {
        self.0.table()
    }

    fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    fn is_transient_in_connect_phase(&self) -> bool {
        self.0.is_transient_in_connect_phase()
    }
}
