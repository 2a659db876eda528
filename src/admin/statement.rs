//! Statements of operators. None stays prepared: a transaction pooler gives the session to others, where it
//! would be in the way.

use sqlx::{
    Postgres,
    postgres::{PgArguments, PgRow},
    query::{Query, QueryAs, QueryScalar},
};

/// A statement whose result is not read.
pub(super) fn statement(sql: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// A statement that returns rows.
pub(super) fn rows<T: for<'r> sqlx::FromRow<'r, PgRow>>(
    sql: &'static str,
) -> QueryAs<'static, Postgres, T, PgArguments> {
    sqlx::query_as(sql).persistent(false)
}

/// A statement that returns one value.
pub(super) fn value<T>(sql: &'static str) -> QueryScalar<'static, Postgres, T, PgArguments>
where
    (T,): for<'r> sqlx::FromRow<'r, PgRow>,
{
    sqlx::query_scalar(sql).persistent(false)
}
