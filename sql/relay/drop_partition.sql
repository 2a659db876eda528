-- Drop the oldest partition of a log whose time has passed and that nothing is owed of, or take a
-- step towards that. `done` is null when nothing is left to do.
--   $1 events or attempts
--   $2 for how many seconds its rows are kept
--   $3 keep or dead-letter: what happens to events that are owed
select dropped.done, dropped.partition, coalesce(dropped.rows, 0) as rows
  from outbox_internal.drop_partition(
           $1::text, justify_hours(make_interval(secs => $2::double precision)), $3::text)
       as dropped
