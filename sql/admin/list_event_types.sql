-- All event types, by topic and version.
select type.id, type.topic, type.version, type.schema::text as schema, type.mode, type.description,
       type.upcast, type.state_reason
  from outbox.event_types as type
 order by type.topic, type.version;
