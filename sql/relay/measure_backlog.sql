-- Measure what is outstanding for each subscription, for metrics: the number of deliveries, and for
-- how long the oldest has been owed. What is not due for the first time has no age.
--   $1 earliest due time to look at; null: all
--
-- The number of rows that are looked at for each subscription is limited; pages are few.
with held as materialized (
    select entry.subscription_id, sum(outbox_internal.count_positions(entry.owed))::bigint as pairs,
           min((select min(since) from unnest(page.owed_since) as since)) as oldest
      from outbox.pages as page
     cross join lateral unnest(page.subscriptions, page.owed) as entry (subscription_id, owed)
     group by entry.subscription_id
)
select subscription.id as subscription_id, subscription.name,
       (select count(*)
          from (select from outbox.deliveries as delivery
                 where delivery.subscription_id = subscription.id
                   and delivery.due_at >= coalesce($1::timestamptz, '-infinity')
                 limit 100000) as counted)
       + coalesce((select sum(counted.size)
                     from (select outbox_internal.count_positions(backlog.positions) as size
                             from outbox.backlog as backlog
                            where backlog.subscription_id = subscription.id
                            limit 10000) as counted), 0)::bigint
       + coalesce((select held.pairs
                     from held
                    where held.subscription_id = subscription.id), 0) as outstanding,
       extract(epoch from now() - least(
           (select min(head.owed_since) filter (where head.owed_since <= now())
              from (select delivery.owed_since from outbox.deliveries as delivery
                     where delivery.subscription_id = subscription.id
                       and delivery.due_at >= coalesce($1::timestamptz, '-infinity')
                     order by delivery.due_at limit 1000) as head),
           (select min(head.owed_since)
              from (select backlog.owed_since from outbox.backlog as backlog
                     where backlog.subscription_id = subscription.id
                     order by backlog.is_suspect, backlog.id limit 100) as head),
           (select held.oldest
              from held
             where held.subscription_id = subscription.id)))::double precision as oldest_age
  from outbox.subscriptions as subscription
 where subscription.sink <> 'live'  -- a channel is owed nothing
