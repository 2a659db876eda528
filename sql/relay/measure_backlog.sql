-- What is outstanding, for gauges: rows and the age of the oldest, per subscription. Bounded: counts stop at 100,000.
select subscription.id as subscription_id, subscription.name,
       (select count(*) from (select from outbox.deliveries as delivery where delivery.subscription_id = subscription.id limit 100000) as counted)::bigint as outstanding,
       extract(epoch from now() - (select min(head.created_at)
                                     from (select delivery.created_at from outbox.deliveries as delivery
                                            where delivery.subscription_id = subscription.id
                                            order by delivery.due_at limit 1000) as head))::double precision as oldest_age
  from outbox.subscriptions as subscription
