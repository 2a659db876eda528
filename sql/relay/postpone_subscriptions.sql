-- Destinations asked for pauses: no relay sends to these subscriptions until a pause ends. A pause
-- is never shortened, and a change of less than a second is not written. Nothing is written about a
-- subscription that was changed or resumed since. Locks no subscription, and waits for none.
--   $1 subscriptions; $2 to $4 are in their order
--   $2 lengths in seconds   $3 sinks   $4 configs, as text
--   $5 channel on which the other relays are notified
--   $6 when the subscriptions must have been changed or resumed last, as relays read it
with paused as (
    insert into outbox.pauses as pause (subscription_id, until, asked_at)
    select asked.id, now() + make_interval(secs => asked.length),
           greatest(clock_timestamp(), subscription.resumed_at + interval '1 microsecond')
      from unnest($1::bigint[], $2::double precision[], $3::text[], $4::text[],
                  $6::timestamptz[])
           as asked (id, length, sink, config, since)
      join outbox.subscriptions as subscription
        on subscription.id = asked.id
       and subscription.sink = asked.sink
       and subscription.config = asked.config::jsonb
       and least(greatest(subscription.resumed_at, '2000-01-01Z'), '2200-01-01Z')
           is not distinct from asked.since
     order by asked.id
    on conflict (subscription_id) do update
       set until = excluded.until, asked_at = excluded.asked_at
     where pause.until < excluded.until - interval '1 second'
        or pause.asked_at <= (select coalesce(resumed.resumed_at, '-infinity')
                                from outbox.subscriptions as resumed
                               where resumed.id = excluded.subscription_id)
    returning subscription_id
),
over as (
    delete from outbox.pauses as pause
     where pause.subscription_id = any (array(
               select ended.subscription_id
                 from outbox.pauses as ended
                where ended.until < now() - interval '1 hour'
                  and ended.subscription_id <> all ($1::bigint[])
                limit 100
                  for update skip locked))
)
select paused.subscription_id,
       case when row_number() over () = 1 then pg_notify($5::text, '')::text end as notified
  from paused
