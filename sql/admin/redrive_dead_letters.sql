-- Retry matching dead letters, oldest first, with the attempt count reset. Returns how many; fewer
-- than $6 means none is left.
--   $1 subscription   $2 topic pattern   $3 LIKE pattern for reason, answer or status
--   $4 since   $5 id (null: any)   $6 most dead letters, 1 to 100000
select outbox.redrive(
           subscription => $1::text,
           topic        => $2::text,
           error_like   => $3::text,
           since        => $4::timestamptz,
           id           => $5::bigint,
           max_rows     => $6::integer);
