-- The events of claimed deliveries, each once.
--   $1 positions   $2 $3 the span of their created_at, which finds the partitions
select event.position, event.created_at, event.id, event.topic, event.key, event.organization, event.source, event.user_id,
       event.schema_version, event.headers::text as headers, event.payload::text as payload
  from outbox.events as event
 where event.position = any ($1::bigint[])
   and event.created_at between $2::timestamptz and $3::timestamptz
