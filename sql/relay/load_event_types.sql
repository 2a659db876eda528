-- Read the event types that changed since a snapshot, and the ids of all event types, in one
-- snapshot.
--   $1 snapshot of the last load; null: all rows
select now_seen.ids,
       type.id, type.topic, type.version, type.schema::text as schema, type.mode, type.description,
       type.upcast, type.state_reason
  from (select array(select every.id from outbox.event_types as every) as ids) as now_seen
  left join outbox.event_types as type
    on $1::text is null or not pg_visible_in_snapshot(type.changed, $1::text::pg_snapshot)
