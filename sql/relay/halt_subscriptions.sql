-- Pause subscriptions whose order is broken by a dead letter (on_exhausted = halt).
--   $1 subscriptions   $2 why, in the order of $1
update outbox.subscriptions as subscription
   set active = false,
       state_reason = ($2::text[])[array_position($1::bigint[], subscription.id)]
 where subscription.id = any ($1::bigint[])
   and subscription.active
returning subscription.id
