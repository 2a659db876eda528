-- Call a SQL function for each delivery and settle those that worked, in one transaction.
--   $1 function   $2 deliveries   $3 their lease tokens   $4 their events as JSON, in the same order
--
-- A function that raised an error is undone alone and reported with its SQLSTATE; a delivery that is no longer ours undoes all.
select called.delivery_id, called.code, called.message
  from outbox.call_function($1::text, $2::bigint[], $3::uuid[], $4::text[]) as called;
