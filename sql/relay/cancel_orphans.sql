-- Delete deliveries and backlog of a subscription that was deleted, and return the number of rows
-- and the latest due time of the deliveries.
--   $1 how many rows of each table at most   $2 the subscription
--   $3 due time of the deliveries from which on; null: all
--
-- In the order of the index, and from where the last part ended: while an old transaction is open,
-- the entries of those that were deleted are all still there.
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
                  and orphan.due_at >= coalesce($3::timestamptz, '-infinity')
                  and not exists (select from outbox.subscriptions as subscription
                                   where subscription.id = orphan.subscription_id)
                order by orphan.due_at
                limit $1::bigint
                  for update skip locked))
    returning delivery.due_at
)
select (select count(*) from backlog) + (select count(*) from deliveries) as cancelled,
       (select max(deliveries.due_at) from deliveries) as until
