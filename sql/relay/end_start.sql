-- A subscription has all its past events: delete its row, unless another relay has moved on since
-- it was read.
--   $1 subscription   $2 position of that row as it was read
delete from outbox.starts where subscription_id = $1::bigint and position = $2::bigint;
