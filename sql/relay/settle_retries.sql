-- Make deliveries due again after a wait. Deliveries whose lease was lost are not changed.
--   $1 deliveries
--   $2 lease tokens of this relay
--   $3 waits in seconds, in the order of $1; null: until it is the first of its key
--   $4 whether the attempt counts, in the order of $1
--   $5 whether the attempt may have reached the destination, in the order of $1
--
-- The waits are looked up by place, not joined: for a join the planner may read the whole table.
update outbox.deliveries as delivery
   set lease_token = null,
       -- what waits behind another was not tried
       unfinished  = case when ($3::double precision[])[array_position($1::bigint[],
                                                                       delivery.id)] is null
                          then delivery.unfinished else 0 end,
       attempt     = case when ($4::boolean[])[array_position($1::bigint[], delivery.id)]
                          then delivery.attempt
                          else greatest(delivery.attempt - 1, 0) end,
       repeated    = delivery.repeated
                     or ($5::boolean[])[array_position($1::bigint[], delivery.id)],
       due_at      = coalesce(
                         clock_timestamp()
                         + make_interval(
                               secs => ($3::double precision[])[array_position($1::bigint[],
                                                                               delivery.id)]),
                         -- it may have become one without an order
                         case when exists (select from outbox.subscriptions as subscription
                                            where subscription.id = delivery.subscription_id
                                              and subscription.ordering = 'none')
                              then clock_timestamp() else outbox_internal.never() end)
 where delivery.id = any ($1::bigint[])
   and delivery.lease_token = any ($2::uuid[])
returning delivery.id
