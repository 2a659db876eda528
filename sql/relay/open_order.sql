-- Whether this relay may deliver an ordered subscription that it has leased: nothing of it is still
-- in the hands of another. Then its keys with waiting deliveries, and the first of each key is made
-- due, where it waits for nothing and is not parked. Rows of the backlog that were written while
-- the subscription became an ordered one are marked, if that is asked for.
--   $1 subscription   $2 lease token   $3 whether this relay delivers it already
--   $4 whether rows of the backlog are marked
--
-- A scan that jumps from key to key, one index probe for each.
with recursive held as materialized (
    select lease.subscription_id
      from outbox.order_leases as lease
     where lease.subscription_id = $1::bigint
       and lease.lease_token = $2::uuid
       and lease.due_at > now()
       for no key update
),
free as materialized (
    select exists (select from held)
           and ($3::boolean
                or not exists (select from outbox.pages as page
                                where page.id > 0
                                  and page.subscriptions @> array[$1::bigint])
                   and not exists (select from outbox.deliveries as delivery
                                    where delivery.subscription_id = $1::bigint
                                      and delivery.due_at > now()
                                      and delivery.due_at < outbox_internal.never()
                                      and delivery.lease_token is not null)) as is_free
),
known (key) as (
    (select delivery.key
       from outbox.deliveries as delivery
      where delivery.subscription_id = $1::bigint
        and delivery.key is not null
      order by delivery.key
      limit 1)
    union all
    select (select delivery.key
              from outbox.deliveries as delivery
             where delivery.subscription_id = $1::bigint
               and delivery.key is not null
               and delivery.key > known.key
             order by delivery.key
             limit 1)
      from known
     where known.key is not null
),
head as materialized (
    select known.key, first.id, first.due_at
      from known
     cross join lateral (
           select delivery.id, delivery.due_at
             from outbox.deliveries as delivery
            where delivery.subscription_id = $1::bigint
              and delivery.key = known.key
            order by delivery.position, delivery.id
            limit 1) as first
),
marked as (
    update outbox.backlog as backlog set is_ordered = true
     where backlog.subscription_id = $1::bigint
       and not backlog.is_ordered
       and $4::boolean
       and (select free.is_free from free)
    returning backlog.id
),
promoted as (
    update outbox.deliveries as delivery
       set due_at = clock_timestamp()
     where delivery.id = any (array(
               select head.id
                 from head
                where head.due_at = outbox_internal.never()
                  and not exists (select from outbox.parked_keys as parked
                                   where parked.subscription_id = $1::bigint
                                     and parked.key = head.key)))
       and delivery.due_at = outbox_internal.never()
       and (select free.is_free from free)
    returning delivery.id
)
select free.is_free,
       array(select head.key from head
             union
             select parked.key from outbox.parked_keys as parked
              where parked.subscription_id = $1::bigint) as keys,
       (select count(*) from promoted) as promoted,
       (select count(*) from marked) as marked
  from free
