-- Delete matching dead letters permanently, oldest first. Returns how many; fewer than $7 means
-- none is left.
--   $1 subscription   $2 topic pattern   $3 LIKE pattern for reason, answer or status
--   $4 since   $5 id (null: any)   $6 until
--   $7 most dead letters, 1 to 100000
select outbox.discard(
           subscription => $1::text,
           topic        => $2::text,
           error_like   => $3::text,
           since        => $4::timestamptz,
           id           => $5::bigint,
           until        => $6::timestamptz,
           max_rows     => $7::integer);
