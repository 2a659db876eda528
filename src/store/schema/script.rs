//! Migrations as SQL, for those who apply them with another tool.

use super::{HISTORY, migrations, name};

/// The table of applied migrations.
pub(super) const CREATE_HISTORY: &str = "create table if not exists outbox.migrations (\
     version bigint primary key, description text not null, installed_on timestamptz not null default now(), \
     success boolean not null, checksum bytea not null, execution_time bigint not null)";

/// All migrations, or those from this number on, as one SQL script. It records them as `run` does.
#[must_use]
pub fn script(from: Option<i64>) -> String {
    let mut script = String::from(
        "-- Run it in one transaction as the owner of the outbox: psql -v ON_ERROR_STOP=1 -1 -f FILE\n\
         -- Publishers wait behind each lock that it waits for. If one is not to be had, nothing changes: run it\n\
         -- again.\n\
         set local lock_timeout = '100ms';\n",
    );
    if from.is_none() {
        script.push_str(&format!("create schema if not exists outbox;\n{CREATE_HISTORY};\n"));
    }
    for migration in migrations().iter().filter(|migration| from.is_none_or(|from| migration.version >= from))
    {
        let checksum: String = migration.checksum.iter().map(|byte| format!("{byte:02x}")).collect();
        script.push_str(&format!(
            "\n-- {}\n{}\ninsert into {HISTORY} (version, description, success, checksum, execution_time) values ({}, '{}', true, decode('{checksum}', 'hex'), 0);\n",
            name(migration),
            migration.sql.as_str(),
            migration.version,
            migration.description.replace('\'', "''"),
        ));
    }
    script
}
