-- Delete ids given by publishers, or dead letters, at most 5,000. Returns how many, and the newest
-- time among them.
--   $1 event_ids or dead_letters
--   $2 for how many seconds they are kept
--   $3 older ones are gone; null: not known
select old.rows, old.newest
  from outbox_internal.delete_old(
           $1::text, justify_hours(make_interval(secs => $2::double precision)), $3::timestamptz)
       as old
