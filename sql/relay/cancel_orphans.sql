-- Deliveries of subscriptions that were deleted are owed to nobody.
--   $1 how many at most   $2 the subscription
delete from outbox.deliveries as delivery
 where delivery.ctid = any (array(
           select orphan.ctid
             from outbox.deliveries as orphan
            where orphan.subscription_id = $2::bigint
              and not exists (select from outbox.subscriptions as subscription where subscription.id = orphan.subscription_id)
            limit $1::bigint
              for update skip locked))
