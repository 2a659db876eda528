-- Remove matching deliveries that wait. Returns how many; fewer than $5 means none is left.
--   $1 subscription   $2 topic pattern   $3 event   $4 LIKE pattern for reason, answer or status of
--   the last attempt (null: any)   $5 most deliveries, 1 to 100000   $6 whether each leaves a dead
--   letter
select outbox.cancel(
           subscription => $1::text,
           topic        => $2::text,
           event        => $3::uuid,
           error_like   => $4::text,
           max_rows     => $5::integer,
           dead_letters => $6::boolean);
