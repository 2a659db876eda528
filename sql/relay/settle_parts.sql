-- Record which pairs of pages are settled, when some were not delivered: failed pairs become
-- deliveries or dead letters, and pairs that cannot be delivered now go back to the backlog. Pages
-- whose lease was lost are not changed. Pairs that were settled before are not written again: the
-- relay repeats this statement when it lost the answer.
--   $1 pages with outstanding pairs
--   $2 numbers of the pairs that are settled now, in the order of $1
--   $3 pages without outstanding pairs, which are deleted
--   $4 lease tokens of this relay
--   Retries:
--   $5 page   $6 number of the pair   $7 subscription   $8 position   $9 created_at of the event
--   $10 owed_since   $11 attempts so far   $12 seconds until it is due
--   $13 claims that ended without a verdict
--   $32 key, where it waits in the order of its key; $12 null: until it is the first of its key
--   Dead letters:
--   $14 page   $15 number of the pair   $16 subscription   $17 position   $18 created_at of the
--     event
--   $19 attempts   $20 reason   $21 status code   $22 answer
--   Backlog:
--   $23 page   $24 numbers of the pairs   $25 subscription   $26 positions   $27 owed_since
--   $28 $29 first and last created_at of the events
--   $30 relays that died with them   $31 relays among them that held a single pair
--   Retries, once more:
--   $33 whether an attempt so far may have reached the destination
with held as materialized (
    select page.id, page.done
      from outbox.pages as page
     where page.id = any ($1::bigint[] || $3::bigint[])
       and page.lease_token = any ($4::uuid[])
     order by page.id
       for no key update
),
finished as (
    delete from outbox.pages as page
     where page.id = any (array(select held.id from held))
       and page.id = any ($3::bigint[])
),
moved as (
    update outbox.pages as page
       set done = page.done + (($2::text[])[array_position($1::bigint[], page.id)])::int4multirange
     where page.id = any (array(select held.id from held))
       and page.id = any ($1::bigint[])
),
retried as (
    insert into outbox.deliveries (
        subscription_id, due_at, position, created_at, owed_since, attempt, unfinished, key,
        repeated)
    select failed.subscription_id,
           coalesce(clock_timestamp() + make_interval(secs => failed.wait),
                    -- it may have become one without an order
                    case when exists (select from outbox.subscriptions as subscription
                                       where subscription.id = failed.subscription_id
                                         and subscription.ordering = 'none')
                         then clock_timestamp() else outbox_internal.never() end),
           failed.position, failed.created_at,
           failed.owed_since, failed.attempt, failed.unfinished, failed.key,
           failed.repeated
      from unnest($5::bigint[], $6::integer[], $7::bigint[], $8::bigint[], $9::timestamptz[],
                  $10::timestamptz[], $11::integer[], $12::double precision[], $13::integer[],
                  $32::text[], $33::boolean[])
           as failed (page, number, subscription_id, position, created_at, owed_since, attempt,
                      wait, unfinished, key, repeated)
      join held on held.id = failed.page and not held.done @> failed.number
),
buried as (
    insert into outbox.dead_letters (
        subscription_id, subscription, reason, status, answer, attempts, event_id, position,
        created_at, topic, key, payload, headers, organization, source, user_id, priority,
        schema_version)
    select dead.subscription_id, subscription.name, dead.reason, dead.status, dead.answer,
           dead.attempts,
           case when read.was_read then event.id end, dead.position,
           coalesce(event.created_at, dead.created_at), coalesce(event.topic, 'unknown'),
           event.key, coalesce(case when read.was_read then event.payload end, 'null'),
           coalesce(case when read.was_read then event.headers end, '{}'),
           event.organization, event.source, event.user_id, coalesce(event.priority, 0),
           event.schema_version
      from unnest($14::bigint[], $15::integer[], $16::bigint[], $17::bigint[], $18::timestamptz[],
                  $19::integer[], $20::text[], $21::integer[], $22::text[])
           as dead (page, number, subscription_id, position, created_at, attempts, reason, status,
                    answer)
      join held on held.id = dead.page and not held.done @> dead.number
      -- one that was deleted is owed nothing
      join outbox.subscriptions as subscription on subscription.id = dead.subscription_id
     -- of an event that could not be read neither its id is copied nor its time is known
     cross join lateral (select dead.reason <> 'event_unreadable' as was_read) as read
      left join outbox.events as event  -- a deleted event leaves a dead letter too
        on event.position = dead.position
       and event.created_at >= case when read.was_read then dead.created_at else '-infinity' end
       and event.created_at <= case when read.was_read then dead.created_at else 'infinity' end
    returning id, subscription_id, key
),
parked as (
    insert into outbox.parked_keys (subscription_id, key, dead_letter_id)
    select buried.subscription_id, buried.key, buried.id
      from buried
      join outbox.subscriptions as subscription
        on subscription.id = buried.subscription_id
       and subscription.ordering = 'key'
       and subscription.on_exhausted = 'park'
     where buried.key is not null
    on conflict do nothing
),
returned as (
    insert into outbox.backlog (
        subscription_id, positions, owed_since, created_from, created_until, deaths, alone,
        is_ordered)
    select back.subscription_id, back.positions::int8multirange, back.owed_since,
           back.created_from, back.created_until, back.deaths, back.alone,
           exists (select from outbox.subscriptions as subscription
                    where subscription.id = back.subscription_id
                      and subscription.ordering = 'key')
      from unnest($23::bigint[], $24::text[], $25::bigint[], $26::text[], $27::timestamptz[],
                  $28::timestamptz[], $29::timestamptz[], $30::smallint[], $31::smallint[])
           as back (page, numbers, subscription_id, positions, owed_since, created_from,
                    created_until, deaths, alone)
      join held on held.id = back.page and not held.done && back.numbers::int4multirange
)
select held.id from held
