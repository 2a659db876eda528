-- Count what is outstanding for a subscription, without the pages that relays hold.
--   $1 subscription   $2 how many rows of each table to look at
--   $3 earliest due time to look at; null: all
select (select count(*)
          from (select from outbox.deliveries as delivery
                 where delivery.subscription_id = $1::bigint
                   and delivery.due_at >= coalesce($3::timestamptz, '-infinity')
                 limit $2::bigint) as counted)
       + coalesce((select sum(counted.size)
                     from (select outbox_internal.count_positions(backlog.positions) as size
                             from outbox.backlog as backlog
                            where backlog.subscription_id = $1::bigint
                            limit $2::bigint) as counted), 0)::bigint as owed;
