-- All events from before are owed: nothing more to do, unless another relay was faster.
--   $1 subscription   $2 worked through up to, as it was read
delete from outbox.starts where subscription_id = $1::bigint and position = $2::bigint;
