-- The first event of the log at or above a position: where it is, and when it was written.
--   $1 position
select event.position, event.created_at
  from outbox.events as event
 where event.position >= $1::bigint
 order by event.position
 limit 1
