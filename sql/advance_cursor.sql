-- Move the cursor that this transaction has locked.
--   $1 step it was read at   $2 settled   $3 low   $4 window_end   $5 window_low   $6 page_after   $7 page_until
update outbox.cursor
   set step       = step + 1,
       settled    = $2::text::pg_snapshot,
       low        = $3::bigint,
       window_end = $4::text::pg_snapshot,
       window_low = $5::bigint,
       page_after = $6::bigint,
       page_until = $7::bigint
 where step = $1::bigint
