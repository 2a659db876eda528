-- Record that a migration was applied.
--   $1 version
--   $2 description
--   $3 checksum
insert into outbox.migrations (version, description, success, checksum, execution_time)
values ($1::bigint, $2::text, true, $3::bytea, 0)
on conflict do nothing
