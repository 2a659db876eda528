-- Call a SQL function for each delivery and settle those that succeeded, in one transaction.
--   $1 function   $2 ids of deliveries   $3 lease tokens   $4 events as JSON, in the same order
--
-- A function that raises an error is rolled back alone and reported with its SQLSTATE. A lost lease rolls
-- back everything.
select called.delivery_id, called.code, called.message
  from outbox.call_function($1::text, $2::bigint[], $3::uuid[], $4::text[]) as called;
