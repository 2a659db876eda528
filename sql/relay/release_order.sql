-- End the leases of ordered subscriptions, so that another relay can go on at once.
--   $1 subscriptions   $2 lease tokens
update outbox.order_leases as lease
   set due_at = now()
 where lease.subscription_id = any ($1::bigint[])
   and lease.lease_token = any ($2::uuid[])
