//! What a login lacks, and the statement that gives it.

use sqlx::PgConnection;

/// What a login that lacks rights needs: the group, and the statement that gives it.
///
/// # Errors
/// Those of the database.
pub(in crate::store) async fn lacking(
    connection: &mut PgConnection,
    group: &str,
) -> Result<String, sqlx::Error> {
    let (login, is_member, version): (String, Option<bool>, i32) =
        sqlx::query_as(sql!("relay/inspect_login"))
            .persistent(false)
            .bind(group)
            .fetch_one(connection)
            .await?;
    Ok(match is_member {
        None => format!(
            "the role {group} does not exist; create it, let the owner of the outbox run \
             `select outbox.grant_roles()`, and run `grant {group} to {login}`"
        ),
        Some(false) => format!("the login {login} is no member of {group}; run `grant {group} to {login}`"),
        Some(true) if version >= 160_000 => format!(
            "the login {login} is a member of {group} and does not inherit its rights; \
             run `grant {group} to {login} with inherit true`"
        ),
        Some(true) => format!(
            "the login {login} is a member of {group} and does not inherit its rights; \
             run `alter role {login} inherit`"
        ),
    })
}
