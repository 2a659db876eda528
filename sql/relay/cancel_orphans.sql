-- Delete deliveries and backlog of a subscription that was deleted, and return the number of rows.
--   $1 how many rows of each table at most   $2 the subscription
with backlog as (
    delete from outbox.backlog as waiting
     where waiting.ctid = any (array(
               select orphan.ctid
                 from outbox.backlog as orphan
                where orphan.subscription_id = $2::bigint
                  and not exists (select from outbox.subscriptions as subscription
                                   where subscription.id = orphan.subscription_id)
                limit $1::bigint
                  for update skip locked))
    returning 1
),
deliveries as (
    delete from outbox.deliveries as delivery
     where delivery.ctid = any (array(
               select orphan.ctid
                 from outbox.deliveries as orphan
                where orphan.subscription_id = $2::bigint
                  and not exists (select from outbox.subscriptions as subscription
                                   where subscription.id = orphan.subscription_id)
                limit $1::bigint
                  for update skip locked))
    returning 1
)
select (select count(*) from backlog) + (select count(*) from deliveries) as cancelled
