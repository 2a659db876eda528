-- Lease ordered subscriptions that no relay has leased: only this relay delivers them now.
--   $1 subscriptions   $2 lease token   $3 length of the lease in seconds   $4 this relay
insert into outbox.order_leases as lease (subscription_id, lease_token, due_at, relay)
select subscription.id, $2::uuid, now() + make_interval(secs => $3::double precision), $4::text
  from outbox.subscriptions as subscription
 where subscription.id = any ($1::bigint[])
   and subscription.ordering = 'key'
   -- nothing is locked or written for one that another relay delivers
   and not exists (select from outbox.order_leases as held
                    where held.subscription_id = subscription.id
                      and held.due_at > now())
 order by subscription.id
    on conflict (subscription_id) do update
       set lease_token = excluded.lease_token, due_at = excluded.due_at, relay = excluded.relay
     where lease.due_at <= now()
returning lease.subscription_id
