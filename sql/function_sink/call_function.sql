-- Call a SQL function for each of these events, and settle the deliveries of those that worked, in the transaction that holds
-- what the function wrote. What is left has a code: its call was undone, and it stays as it is.
--   $1 function   $2 pages (null: a row of outbox.deliveries)   $3 numbers of their pairs, or ids of rows   $4 lease tokens   $5 events as JSON
select called.number, called.code, called.message
  from outbox.call_function($1::text, $2::bigint[], $3::bigint[], $4::uuid[], $5::text[]) as called
