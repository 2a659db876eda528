-- How much a subscription is owed, what relays hold aside, counted no further than needed.
--   $1 subscription   $2 enough
select (select count(*) from (select from outbox.deliveries as delivery where delivery.subscription_id = $1::bigint limit $2::bigint) as counted)
       + coalesce((select sum(counted.size)
                     from (select outbox.count_positions(backlog.positions) as size from outbox.backlog as backlog
                            where backlog.subscription_id = $1::bigint limit $2::bigint) as counted), 0)::bigint as owed;
