-- Where routing stands. Nobody is kept from moving it meanwhile: advance_cursor.sql finds out.
--   $1 the step last seen
--
-- Scanned backward from the right end of its index and never below $1: while an old transaction keeps dead versions
-- alive, they all lie to the left.
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
