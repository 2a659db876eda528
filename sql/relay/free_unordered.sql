-- Make due what waits in the order of a key although its subscription has no order any more: it was
-- written while that changed. And forget leases of subscriptions that were deleted long ago.
with forgotten as (
    delete from outbox.order_leases as lease
     where lease.due_at < now() - interval '1 hour'
       and not exists (select from outbox.subscriptions as subscription
                        where subscription.id = lease.subscription_id)
)
update outbox.deliveries as delivery
   set key = null, due_at = now()
 where delivery.id = any (array(
           select waiting.id
             from outbox.subscriptions as subscription
            cross join lateral (
                  select one.id
                    from outbox.deliveries as one
                   where one.subscription_id = subscription.id
                     and one.key is not null
                   limit 1000) as waiting
            where subscription.ordering = 'none'))
   and delivery.lease_token is null
