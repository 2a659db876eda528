-- Record successes and failures of subscriptions with retry.disable_after, and disable those that
-- have failed for so long without a success, by whatever relay. A subscription whose row is locked
-- is disabled later.
--   $1 subscriptions; $2 to $5 are in their order
--   $2 seconds since the last success; null: none
--   $3 seconds since the first failure after it; null: none
--   $4 seconds since the last failure; null: none
--   $5 retry.disable_after in seconds
--
-- What happened before the subscription was changed or resumed does not count. A relay that knows a
-- failure from before another's success counts from its last one.
with said as materialized (
    select one.id, one.disable_after,
           greatest(now() - make_interval(secs => one.success), subscription.resumed_at) as good_at,
           now() - make_interval(secs => one.first) as first_at,
           now() - make_interval(secs => one.last) as last_at
      from unnest($1::bigint[], $2::double precision[], $3::double precision[],
                  $4::double precision[], $5::double precision[])
           as one (id, success, first, last, disable_after)
      join outbox.subscriptions as subscription on subscription.id = one.id
     order by one.id
),
judged as (
    insert into outbox.subscription_health as health (
        subscription_id, good_at, failing_since, failed_at)
    select said.id, said.good_at,
           case when said.first_at > coalesce(said.good_at, '-infinity') then said.first_at
                when said.last_at > coalesce(said.good_at, '-infinity') then said.last_at end,
           said.last_at
      from said
     where said.last_at > coalesce(said.good_at, '-infinity')
        or exists (select from outbox.subscription_health as known
                    where known.subscription_id = said.id)
    on conflict (subscription_id) do update
       set good_at = greatest(health.good_at, excluded.good_at),
           failed_at = greatest(health.failed_at, excluded.failed_at),
           failing_since = least(
               case when health.failing_since
                         > coalesce(greatest(health.good_at, excluded.good_at), '-infinity')
                    then health.failing_since end,
               case when excluded.failing_since
                         > coalesce(greatest(health.good_at, excluded.good_at), '-infinity')
                    then excluded.failing_since
                    when excluded.failed_at
                         > coalesce(greatest(health.good_at, excluded.good_at), '-infinity')
                    then excluded.failed_at end)
    returning health.subscription_id, health.failing_since, health.failed_at
),
hopeless as materialized (
    select judged.subscription_id, judged.failing_since
      from judged
      join said on said.id = judged.subscription_id
     where judged.failed_at - judged.failing_since >= make_interval(secs => said.disable_after)
)
update outbox.subscriptions as subscription
   set state = 'disabled',
       state_reason = format('no attempt has succeeded since %s, for longer than '
                             'retry.disable_after (%s); outbox.resume() sends again',
                             to_char((select hopeless.failing_since from hopeless
                                       where hopeless.subscription_id = subscription.id)
                                     at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                             subscription.retry ->> 'disable_after')
 where subscription.id = any (array(
           select free.id
             from outbox.subscriptions as free
            where free.id = any (array(select hopeless.subscription_id from hopeless))
              and free.active
              and free.state in ('pending', 'ok')
            order by free.id
              for update skip locked))
returning subscription.id, subscription.state_reason
