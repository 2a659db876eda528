-- Call a function for each event that is new in the other database.
--   $1 function   $2 sources   $3 events as JSON, in the same order
select called.code, called.message
  from outbox.inbox_deliver($1::text, $2::text[], $3::text[]) as called
 order by called.n;
