-- Event types, by topic and version.
--   $1 topic, $2 version: only those after this one (null: any)   $3 most rows
select type.id, type.topic, type.version, type.schema::text as schema, type.mode, type.description,
       type.upcast, type.state_reason
  from outbox.event_types as type
 where $1::text is null
    or (type.topic, type.version) > ($1::text, $2::integer)
 order by type.topic, type.version
 limit $3::bigint;
