-- Lease due deliveries: for each subscription, as many as it has room for.
--   $1 subscriptions
--   $2 deliveries wanted for each
--   $3 earliest due time to look at for each; null: all
--   $4 lease token
--   $5 length of the lease in seconds
--
-- One scan per subscription: a million rows waiting for one cost the others nothing.
-- `due` is materialized: as a plain subquery the limited scan may run more than once and lease too
-- much. Rows are updated by address, which is valid while their locks are held. With a join by key,
-- the planner expects many rows and reads the whole table.
-- A lease is a due time in the future: when a relay dies, its deliveries become due again by
-- themselves. A lease token that is still there then shows that the claim before this one ended
-- without a verdict. now() and not clock_timestamp(): only a stable function can bound the index
-- scan.
-- Pause and state of the subscription are read here too, so that all relays follow them at once.
with room (subscription_id, permits, since) as (
    select * from unnest($1::bigint[], $2::integer[], $3::timestamptz[])
),
due as materialized (
    select waiting.address
      from room
      join outbox.subscriptions as subscription
        on subscription.id = room.subscription_id
       and subscription.active
       and subscription.ordering = 'none'
       -- invalid for one relay may be ok for another
       and subscription.state in ('pending', 'ok', 'invalid')
       and not exists (select from outbox.pauses as pause
                        where pause.subscription_id = room.subscription_id
                          and pause.until > now()
                          and pause.asked_at > coalesce(subscription.resumed_at, '-infinity'))
     cross join lateral (
           select delivery.ctid as address
             from outbox.deliveries as delivery
            where delivery.subscription_id = room.subscription_id
              and delivery.due_at <= now()
              and delivery.due_at >= coalesce(room.since, '-infinity')
            order by delivery.due_at, delivery.id
            limit coalesce(room.permits, 0)  -- a null limit would be no limit
              for update skip locked
           ) as waiting
)
update outbox.deliveries as delivery
   set unfinished  = case when delivery.lease_token is null then delivery.unfinished
                          else delivery.unfinished + 1 end,
       repeated    = delivery.repeated or delivery.lease_token is not null,
       lease_token = $4::uuid,
       due_at      = now() + make_interval(secs => $5::double precision),
       attempt     = delivery.attempt + 1,
       asked       = false
 where delivery.ctid = any (array(select due.address from due))
returning delivery.id, delivery.subscription_id, delivery.position, delivery.created_at,
          delivery.owed_since, delivery.attempt,
          delivery.unfinished, delivery.key, delivery.replay_id, delivery.repeated
