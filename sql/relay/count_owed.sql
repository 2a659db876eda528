-- Count what is outstanding for a subscription, without the pages that relays hold.
--   $1 subscription   $2 how many rows of each table to look at
--   $3 earliest due time to look at; null: all
--
-- What an ordered subscription cannot be sent before its past events does not count, nor what waits
-- for another event of its key: a backfill would wait for it, and it for the backfill.
select (select count(*)
          from (select from outbox.deliveries as delivery
                 where delivery.subscription_id = $1::bigint
                   and delivery.due_at >= coalesce($3::timestamptz, '-infinity')
                   and delivery.due_at < outbox_internal.never()
                 limit $2::bigint) as counted)
       + coalesce((select sum(counted.size)
                     from (select outbox_internal.count_positions(backlog.positions) as size
                             from outbox.backlog as backlog
                            where backlog.subscription_id = $1::bigint
                              and (not backlog.is_ordered
                                   or backlog.first_position <= (
                                          select start.position from outbox.starts as start
                                           where start.subscription_id = $1::bigint))
                            limit $2::bigint) as counted), 0)::bigint as owed;
