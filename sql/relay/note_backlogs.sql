-- Publish which backlogs have become too old, and which are no longer.
--   $1 subscriptions
--   $2 for how many seconds their oldest event has been owed, in the order of $1
--   $3 limit in seconds
select outbox_internal.note_backlogs($1::bigint[], $2::double precision[], $3::double precision)
