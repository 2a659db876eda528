-- Read the event types that changed since a snapshot, and the ids of all event types, in one
-- snapshot. The first row has the ids, and no type.
--   $1 snapshot of the last load; null: all rows
select part.ids,
       type.id, type.topic, type.version, type.schema::text as schema, type.mode, type.description,
       type.upcast, type.state_reason
  from (select array(select every.id from outbox.event_types as every) as ids, null::bigint as id
        union all
        select null, changed.id
          from outbox.event_types as changed
         where $1::text is null
            or not pg_visible_in_snapshot(changed.changed, $1::text::pg_snapshot)) as part
  left join outbox.event_types as type on type.id = part.id
 order by part.id nulls first
