-- Read all channels and the generation, in one snapshot. The first row has only the generation.
select part.generation,
       channel.id, channel.name, channel.topics, channel.sink,
       channel.config, channel.match, channel.filter,
       channel.transform, channel.schema_version, channel.organization,
       channel.keys, channel.ordering, channel.on_exhausted,
       channel."coalesce", channel.rate, channel.retry,
       channel.max_in_flight, channel.active, channel.state,
       channel.state_reason, channel.owed_until, false as starting,
       -- The relay has no infinite times.
       least(greatest(channel.resumed_at, '2000-01-01Z'), '2200-01-01Z') as resumed_at
  from (select generation.value as generation, null::bigint as id from outbox.generation
        union all
        select null, one.id
          from outbox.subscriptions as one
         where one.sink = 'live') as part
  left join outbox.subscriptions as channel on channel.id = part.id
 order by part.id nulls first
