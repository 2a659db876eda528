-- Read the cursor without a lock: advance_cursor.sql finds out whether another relay has moved it.
--   $1 a step that was seen before, or 0
--
-- The index is scanned backward from its right end and never below $1: while an old transaction is
-- open, dead row versions are all to the left.
select cursor.step,
       cursor.settled::text                        as settled,
       pg_snapshot_xmax(cursor.settled)::text      as settled_xmax,
       array(select xid::text from pg_snapshot_xip(cursor.settled) as xid) as settled_xip,
       cursor.low,
       cursor.low_xid::text                        as low_xid,
       cursor.window_end::text                     as window_end,
       cursor.window_low,
       cursor.window_low_xid::text                 as window_low_xid,
       cursor.page_after,
       cursor.page_until
  from outbox.cursor as cursor
 where cursor.step >= $1::bigint
 order by cursor.step desc
 limit 1
