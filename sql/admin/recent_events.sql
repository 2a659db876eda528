-- Recent events, newest first, to try a subscription on.
--   $1 number of events
select event.position, event.created_at, event.id, event.topic, event.key, event.organization,
       event.source, event.user_id,
       event.schema_version, event.headers::text as headers, event.payload::text as payload
  from outbox.events as event
 order by event.position desc
 limit $1::bigint;
