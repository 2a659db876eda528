-- One event. $1 position $2 time of the insert
select event.id as event_id, event.position, event.topic, event.key, event.organization,
       event.source, event.user_id, event.schema_version, event.priority, event.created_at,
       event.deliver_after, event.headers, event.payload
  from outbox.events as event
 where event.position = $1::bigint
   and event.created_at = $2::timestamptz;
