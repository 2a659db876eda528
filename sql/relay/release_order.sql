-- End the leases of ordered subscriptions, so that another relay can go on at once.
--   $1 subscriptions   $2 lease token
update outbox.order_leases as lease
   set due_at = now()
 where lease.subscription_id = any ($1::bigint[])
   and lease.lease_token = $2::uuid
