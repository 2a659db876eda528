-- Read the subscriptions that changed since a snapshot, the ids of all, the limits of organizations
-- and the generation, in one snapshot. The first row has all but a subscription.
--   $1 snapshot of the last load; null: all rows
select part.snapshot, part.generation, part.ids, part.limited, part.rates,
       subscription.id, subscription.name, subscription.topics, subscription.sink,
       subscription.config, subscription.match, subscription.filter,
       subscription.transform, subscription.schema_version, subscription.organization,
       subscription.keys, subscription.ordering, subscription.on_exhausted,
       subscription."coalesce", subscription.rate, subscription.retry,
       subscription.max_in_flight, subscription.active, subscription.state,
       subscription.state_reason, subscription.owed_until,
       exists (select from outbox.starts as start
                where start.subscription_id = subscription.id) as starting,
       -- The relay has no infinite times.
       least(greatest(subscription.resumed_at, '2000-01-01Z'), '2200-01-01Z') as resumed_at
  from (select pg_current_snapshot()::text as snapshot,
               (select generation.value from outbox.generation) as generation,
               array(select every.id from outbox.subscriptions as every) as ids,
               array(select one.organization from outbox.organization_limits as one
                      order by one.organization) as limited,
               array(select one.rate from outbox.organization_limits as one
                      order by one.organization) as rates,
               null::bigint as id
        union all
        select null, null, null, null, null, changed.id
          from outbox.subscriptions as changed
         where $1::text is null
            or not pg_visible_in_snapshot(changed.changed, $1::text::pg_snapshot)) as part
  left join outbox.subscriptions as subscription on subscription.id = part.id
 order by part.id nulls first
