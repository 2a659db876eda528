-- Find the first event that cannot be read, in one statement and with one failing conversion.
--   $1 positions
--   $2 $3 first and last created_at of the events, which select the partitions
select outbox_internal.first_unreadable($1::bigint[], $2::timestamptz, $3::timestamptz)
