-- Lease rows of outbox.deliveries of ordered subscriptions: what is due, and of each key that is
-- due or asked for the next rows in the order of positions.
--   $1 subscriptions
--   $2 deliveries wanted for each
--   $3 earliest due time to look at for each; null: all
--   Keys whose next rows are asked for:
--   $4 subscriptions   $5 keys
--   $6 rows of one key at most
--   $7 lease tokens of the subscriptions
--   $8 lease token   $9 length of the lease in seconds
--
-- A row of a key is leased only when every row before it is leased with it. What is due without
-- being the first of its key gets the due time of those that wait. Nothing of a parked key is
-- leased. Keys that were asked for of which nothing is leased come back without a row, and so do
-- the subscriptions that were looked at, without a key and with the number of due rows. While the
-- backlog has suspects of a subscription, it is not looked at: they may come before the rows.
with held as materialized (
    select lease.subscription_id
      from outbox.order_leases as lease
     where lease.subscription_id = any ($1::bigint[] || $4::bigint[])
       and lease.lease_token = any ($7::uuid[])
       and lease.due_at > now()
       and not exists (select from outbox.backlog as suspect
                        where suspect.subscription_id = lease.subscription_id
                          and suspect.is_suspect)
       for share
),
ready as materialized (
    select subscription.id
      from held
      join outbox.subscriptions as subscription
        on subscription.id = held.subscription_id
       and subscription.active
       -- invalid for one relay may be ok for another
       and subscription.state in ('pending', 'ok', 'invalid')
       and not exists (select from outbox.pauses as pause
                        where pause.subscription_id = held.subscription_id
                          and pause.until > now()
                          and pause.asked_at > coalesce(subscription.resumed_at, '-infinity'))
),
due as materialized (
    select waiting.id, waiting.subscription_id, waiting.key
      from unnest($1::bigint[], $2::integer[], $3::timestamptz[])
           as room (subscription_id, permits, since)
      join ready on ready.id = room.subscription_id
     cross join lateral (
           select delivery.id, delivery.subscription_id, delivery.key
             from outbox.deliveries as delivery
            where delivery.subscription_id = room.subscription_id
              and delivery.due_at <= now()
              and delivery.due_at >= coalesce(room.since, '-infinity')
            order by delivery.due_at, delivery.id
            limit coalesce(room.permits, 0)  -- a null limit would be no limit
           ) as waiting
),
wanted as materialized (
    select due.subscription_id, due.key from due where due.key is not null
    union
    select asked.subscription_id, asked.key
      from unnest($4::bigint[], $5::text[]) as asked (subscription_id, key)
      join ready on ready.id = asked.subscription_id
),
run as materialized (
    select wanted.subscription_id, wanted.key, next.id, next.n,
           exists (select from outbox.parked_keys as parked
                    where parked.subscription_id = wanted.subscription_id
                      and parked.key = wanted.key) as is_parked,
           next.due_at <= now() or next.due_at = outbox_internal.never() as is_ready
      from wanted
     cross join lateral (
           select one.id, one.due_at, row_number() over (order by one.position, one.id) as n
             from (select delivery.id, delivery.due_at, delivery.position
                     from outbox.deliveries as delivery
                    where delivery.subscription_id = wanted.subscription_id
                      and delivery.key = wanted.key
                    order by delivery.position, delivery.id
                    limit $6::bigint) as one
           ) as next
),
free as materialized (
    select delivery.id
      from outbox.deliveries as delivery
     where delivery.id = any (array(
               select run.id from run where run.is_ready and not run.is_parked
               union
               select due.id from due))
       for update skip locked
),
-- Of each key up to the first that is locked, leased or waits for its time.
taken as materialized (
    select each.id, each.n
      from (select run.id, run.n,
                   bool_and(not run.is_parked and run.id in (select free.id from free))
                       over (partition by run.subscription_id, run.key order by run.n) as is_next
              from run) as each
     where each.is_next
    union all
    select each.id, 1
      from (select due.id, due.id in (select free.id from free) as is_free
              from due
             where due.key is null) as each
     where each.is_free
),
leased as (
    update outbox.deliveries as delivery
       set -- only the first of a key can have been in flight
           unfinished  = case when delivery.lease_token is null
                                or delivery.id = any (array(select taken.id from taken
                                                             where taken.n > 1))
                              then delivery.unfinished
                              else delivery.unfinished + 1 end,
           repeated    = delivery.repeated
                         or delivery.lease_token is not null
                            and not delivery.id = any (array(select taken.id from taken
                                                              where taken.n > 1)),
           lease_token = $8::uuid,
           due_at      = now() + make_interval(secs => $9::double precision),
           attempt     = delivery.attempt + 1,
           asked       = false
     where delivery.id = any (array(select taken.id from taken))
    returning delivery.id, delivery.subscription_id, delivery.position, delivery.created_at,
              delivery.owed_since, delivery.attempt, delivery.unfinished, delivery.key,
              delivery.replay_id, delivery.repeated
),
behind as (
    update outbox.deliveries as delivery
       set due_at = outbox_internal.never(), lease_token = null
     where delivery.id = any (array(
               select each.id
                 from (select due.id,
                              due.id in (select taken.id from taken)
                              or due.id in (select run.id from run
                                             where run.n = 1 and not run.is_parked) as may_stay
                         from due
                        where due.key is not null
                          and due.id = any (array(select free.id from free))) as each
                where not each.may_stay))
       and delivery.due_at <= now()
)
select leased.id, leased.subscription_id, leased.position, leased.created_at, leased.owed_since,
       leased.attempt, leased.unfinished, leased.key, leased.replay_id,
       leased.repeated, 0 as remaining
  from leased
union all
select null, asked.subscription_id, null, null, null, null, null, asked.key, null, null,
       ((select count(*) from run
          where run.subscription_id = asked.subscription_id and run.key = asked.key)
        + (select count(*) from outbox.parked_keys as parked
            where parked.subscription_id = asked.subscription_id
              and parked.key = asked.key))::integer
  from unnest($4::bigint[], $5::text[]) as asked (subscription_id, key)
  join ready on ready.id = asked.subscription_id
 where not (asked.subscription_id, asked.key) in (
               select leased.subscription_id, leased.key
                 from leased
                where leased.key is not null)
union all
select null, ready.id, null, null, null, null, null, null, null, null,
       coalesce(found.rows, 0)::integer
  from ready
  left join (select due.subscription_id, count(*) as rows
               from due
              group by due.subscription_id) as found
    on found.subscription_id = ready.id
 where ready.id = any ($1::bigint[])
