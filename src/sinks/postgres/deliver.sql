-- Call a function of another database for each event that is new there.
--   $1 function   $2 sources   $3 events as JSON, in the same order
select called.code, called.message
  from outbox.inbox_deliver($1::text, $2::text[], $3::text[]) as called
 order by called.n;
