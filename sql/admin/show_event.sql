-- One event. An id of version 7 begins with its time, and outbox.event_ids has that of another id,
-- so the event is looked for near that time first.
--   $1 id
with near (at) as (
    select coalesce(
               (select given.created_at from outbox.event_ids as given where given.id = $1::uuid),
               to_timestamp(('x' || left(replace($1::uuid::text, '-', ''), 12))::bit(48)::bigint
                            / 1000.0))
)
select found.id as event_id, found.position, found.topic, found.key, found.organization,
       found.source, found.user_id, found.schema_version, found.priority, found.created_at,
       found.deliver_after, found.headers, found.payload
  from (select event.*
          from near
          join outbox.events as event
            on event.created_at between near.at - interval '1 hour' and near.at + interval '1 day'
         where event.id = $1::uuid
        union all
        select event.* from outbox.events as event where event.id = $1::uuid) as found
 limit 1;
