//! What may be wrong with the schema `outbox` as it stands: owners, publications, captures.

use sqlx::FromRow;

use super::statement::rows;
use super::{Error, Finding, Operator, ask};
use crate::store;

/// An owner in the schema `outbox`.
#[derive(Debug, FromRow)]
struct Owner {
    owner: String,
    objects: i64,
    /// The first thing that it owns, by name.
    example: String,
}

impl Operator {
    /// What is wrong with the schema itself.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn check_schema(&mut self) -> Result<Vec<Finding>, Error> {
        let owners: Vec<Owner> = ask(
            "listing the owners of the outbox",
            rows(sql!("admin/list_owners")).fetch_all(&mut self.connection),
        )
        .await?;
        let unidentified: Vec<(String, String)> = ask(
            "listing tables that are published without a replica identity",
            rows(sql!("admin/list_unidentified")).fetch_all(&mut self.connection),
        )
        .await?;
        let owners = several(&owners).map(|problem| Finding { subject: "schema outbox".to_owned(), problem });
        let published = unidentified.into_iter().map(|(table, publication)| Finding {
            problem: format!(
                "rows of it cannot be deleted, because the publication {publication} sends deletes: \
                 run `alter table {table} replica identity full`"
            ),
            subject: format!("table {table}"),
        });
        let captured = self
            .capture_problems()
            .await?
            .into_iter()
            .map(|(table, problem)| Finding { subject: format!("capture of {table}"), problem });
        let retention = self
            .list_kept()
            .await?
            .into_iter()
            .filter(|(.., is_problem)| *is_problem)
            .map(|(subject, problem, _)| Finding { subject, problem });
        Ok(owners.into_iter().chain(published).chain(captured).chain(retention).collect())
    }

    /// What relays could not remove although it is old enough, with the reason, and whether somebody must
    /// act.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn list_kept(&mut self) -> Result<Vec<(String, String, bool)>, Error> {
        ask("reading what is kept", rows(sql!("admin/list_kept")).fetch_all(&mut self.connection)).await
    }

    /// Captured tables with a problem, and the problem.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn capture_problems(&mut self) -> Result<Vec<(String, String)>, Error> {
        ask("looking for problems of captures", store::capture_problems(&mut self.connection)).await
    }
}

fn several(owners: &[Owner]) -> Option<String> {
    let (first, others) = owners.split_first().filter(|(_, others)| !others.is_empty())?;
    let others: Vec<_> = others
        .iter()
        .map(|owner| match owner.objects {
            1 => format!("{} ({})", owner.owner, owner.example),
            more => format!("{} ({}, and {} more)", owner.owner, owner.example, more - 1),
        })
        .collect();
    Some(format!(
        "{} owns most of it, but not what belongs to {}: functions run with the rights of their owner, so give \
         all of it to one role, with `alter … owner to {}`",
        first.owner,
        others.join(" and "),
        first.owner
    ))
}
