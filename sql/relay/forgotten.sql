-- What was removed of the log; no row if nothing was.
select known.xid::text as xid, known.created_at, known.position
  from outbox.forgotten as known
