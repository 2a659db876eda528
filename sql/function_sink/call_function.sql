-- Call a SQL function for each delivery and settle those that succeeded, in one transaction.
--   $1 function   $2 pages (null: a row of outbox.deliveries)   $3 numbers of their pairs, or ids
--     of rows
--   $4 lease tokens   $5 events as JSON, in the same order
--
-- A function that raises an error is rolled back alone and reported with its SQLSTATE. A lost lease
-- rolls back everything.
select called.number, called.code, called.message
  from outbox_internal.call_function($1::text, $2::bigint[], $3::bigint[], $4::uuid[],
                                     $5::text[]) as called
